"""`lorikeet train --cluster ray`: several domains at a time, each a task of Ray that runs `lorikeet train`.

A task declares the cores that it uses, and a GPU where each can have one; Ray starts the next when they are free. What
a training prints comes back line by line.
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.children import bound
from config.home import Home
from config.load import load_domain
from config.local_ray import check_ray, connected_ray
from train.errors import TrainError

_END_TIMEOUT_S = 60.0
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class DomainTask:
    """One domain's training.

    Attributes:
        words: Of the command, after the program's name.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Resources:
    """What one task declares."""

    num_cpus: int
    num_gpus: int


Line = tuple[str, str | int]
"""A domain's name, and a line that its training printed, or at last its exit code."""


def domain_tasks(files: Sequence[Path], home: Home, options: Sequence[str]) -> tuple[DomainTask, ...]:
    """One task for each file.

    Args:
        options: Of `lorikeet train`, for all of them.

    Raises:
        ConfigError: A file is missing or wrong.
        TrainError: Two files are of one domain.
    """
    tasks: list[DomainTask] = []
    for file in files:
        name = load_domain(file).name
        if name in [task.name for task in tasks]:
            raise TrainError(f"The domain {name!r} is given twice. Two trainings of it would write the same run.")
        words = ("train", str(file.resolve()), "--home", str(home.root.resolve()), *options)
        tasks.append(DomainTask(name, words))
    return tuple(tasks)


def share_of(cluster: Mapping[str, float], largest_node: int, num_tasks: int) -> Resources:
    """What each of so many tasks gets of a cluster's cores and GPUs, when all run at a time.

    Args:
        cluster: Ray's totals, `CPU` and `GPU`.
        largest_node: Cores of the largest node; a task runs on one.
    """
    num_cpus, num_gpus = int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0))
    return Resources(max(1, min(num_cpus // num_tasks, largest_node)), min(1, num_gpus))


def train_in_cluster(
    tasks: Sequence[DomainTask], address: str | None, show: Callable[[str, str], None]
) -> dict[str, int]:
    """Train all domains; one that fails does not stop the others. Ctrl-C ends all, each with its checkpoint.

    Args:
        address: Of a running cluster; None starts a Ray on this machine, and ends it.
        show: Called with a domain's name and each line of its training.

    Returns:
        Exit codes by domain.

    Raises:
        RayError: Ray is not installed, or not reached.
    """
    check_ray(address)
    with connected_ray(address, "lorikeet-train"):
        import ray

        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        share = share_of(ray.cluster_resources(), max(nodes, default=1), len(tasks))
        run = ray.remote(num_cpus=share.num_cpus, num_gpus=share.num_gpus, max_retries=0)(run_task)
        started: dict[str, Any] = {
            task.name: run.options(name=task.name).remote(task, share.num_cpus) for task in tasks
        }
        followed = _Followed(started, ray.get)
        try:
            return followed.codes(show)
        except KeyboardInterrupt:
            for each in started.values():
                ray.cancel(each)
            followed.codes(show)
            raise


def run_task(task: DomainTask, num_threads: int) -> Generator[str | int]:
    """Run one training; yields its lines, then its exit code. In the end nothing of it is left."""
    command = bound([sys.executable, "-P", "-m", "lorikeet", *task.words])
    environment = {_THREADS: str(num_threads), **os.environ}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            yield line.rstrip("\n")
        yield process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # it writes how to resume
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


class _Followed:
    """Tasks whose lines are read as they come, by a thread each.

    Args:
        get: Ray's, from a reference to what it refers to.
    """

    def __init__(self, started: Mapping[str, Iterable[Any]], get: Callable[[Any], str | int]) -> None:
        self._get = get
        self._lines: queue.Queue[Line] = queue.Queue()
        self._codes: dict[str, int] = {}
        self._num_tasks = len(started)
        for name, task in started.items():
            threading.Thread(target=self._follow, args=(name, task), daemon=True).start()

    def codes(self, show: Callable[[str, str], None]) -> dict[str, int]:
        """Show lines until every task has ended; continues where an earlier call was interrupted."""
        while len(self._codes) < self._num_tasks:
            name, line = self._lines.get()
            if isinstance(line, int):
                self._codes[name] = line
            else:
                show(name, line)
        return self._codes

    def _follow(self, name: str, task: Iterable[Any]) -> None:
        code = 1
        try:
            for reference in task:
                line = self._get(reference)
                if isinstance(line, int):
                    code = line
                else:
                    self._lines.put((name, line))
        except Exception as error:  # boundary: the others go on
            self._lines.put((name, f"The task was lost: {next(iter(str(error).splitlines()), repr(error))}"))
        self._lines.put((name, code))
