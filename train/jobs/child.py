"""The process of one job: runs the pipeline of `lorikeet train` with the job's settings, and reports its result.

The worker (`train/jobs/worker.py`) starts it, reads one line of its output, and may kill it at any moment: what it
wrote is found by the job's id.
"""

import fcntl
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import ClaimLostError
from adapters.jobs.files import FileStore
from adapters.jobs.models import ModelNames, model_name
from adapters.jobs.pressure import Pressure
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Job, JobFailure
from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore
from config.home import Home
from config.jobs import JobsConfig
from config.model import Config
from train.jobs.failures import failure_of
from train.jobs.folder import TRAINING_FILE, VALIDATION_FILE, JobHome
from train.jobs.limits import YieldToClients, lower_priority, wait_for_gpu
from train.jobs.published import Published, alias_of, find_version
from train.jobs.stop import StopRequest
from train.shell import quiet_libraries

if TYPE_CHECKING:
    from config.domain import DomainConfig
    from train.jobs.examples import JobFiles
    from train.jobs.reporter import JobReporter, PublishCheckpoint
    from train.methods.method import Trainable

logger = logging.getLogger(__name__)


_WAITING_FOR_ADAPTER = "Waiting for another job that trains the same adapter"


class ChildTask(Config):
    """The task of a child process: its only argument, as JSON."""

    action: Literal["validate", "train"]
    home: Path
    job_id: str
    worker: str
    jobs: JobsConfig
    grader_url: str | None = None
    grader_api_key_env: str | None = None


class ChildReport(Config):
    """The child's report to its worker, as one line of JSON at the end; missing if it was killed."""

    failure: JobFailure | None = None


class JobProcess:
    """One job's training, from its files to its version."""

    def __init__(self, task: ChildTask, database: JobsDatabase, stop: StopRequest) -> None:
        self.task = task
        self.stop = stop
        self.home = JobHome(task.home, task.job_id)
        self.store = AdapterStore(self.home.adapters)
        self.queue = JobQueue(database)
        self.files = FileStore(database, self.home.jobs)
        self.names = ModelNames(database)
        self.pressure = Pressure(database)

    def validate(self) -> None:
        """Read the files of a job that is not queued yet.

        Raises:
            InvalidJobError: They cannot be trained on.
        """
        from train.jobs.examples import read_examples

        job = self.queue.get(None, self.task.job_id)
        self.home.prepare()
        read_examples(job, self._job_files(job))
        self.queue.validated(job.id)

    def train(self) -> None:
        """Train and publish, or finish what an earlier process has published."""
        self.home.prepare()
        with _locked(self.home.lock):
            job = self.queue.get(None, self.task.job_id)
            # Jobs of one adapter take turns: they share its data set, and the later one is judged by the earlier.
            with _locked(
                self.home.folder.parent / f"{job.adapter}.lock",
                lambda: self._add_event(job, _WAITING_FOR_ADAPTER, "turn"),
            ):
                found = find_version(self.store, job)
                published = Published(self.queue, self.files, self.store, self.task.worker)
                published.finish(job, found or self._train(job))

    def _train(self, job: Job) -> Manifest:
        from train.errors import ResumeError
        from train.jobs.domain import domain_of_values
        from train.pipeline import JobRun, train_and_publish
        from train.runs import last_checkpoint

        wait_for_gpu(
            self.task.jobs.gpu_memory, lambda: self._add_event(job, "Waiting for a GPU with free memory", "gpu")
        )
        values = self.home.read_values()
        if values is None:
            values = self._begin(job)
        config = domain_of_values(job.id, values)
        resume = last_checkpoint(self.home.runs / config.name) is not None
        run = JobRun(job.id, alias_of(job), (self._reporter(job, values),))
        try:
            return train_and_publish(config, self.home, resume=resume, job=run).manifest
        except ResumeError as error:  # another base under the same name: the checkpoint does not fit it
            self._add_event(job, f"Training restarts from step 0: {error}", "starts again", level="warn")
            return train_and_publish(config, self.home, job=run).manifest

    def _begin(self, job: Job) -> dict[str, Any]:
        """Decide the settings, and save them for a later resume."""
        from transformers import AutoTokenizer

        from adapters.bases import read_base
        from train.jobs.data import usable_values
        from train.jobs.domain import GraderPlace, domain_values

        read_base(self.home.bases / job.base)
        tokenizer = AutoTokenizer.from_pretrained(self.home.bases / job.base)
        graders = GraderPlace(self.task.grader_url, self.task.grader_api_key_env)
        values = domain_values(job, self._job_files(job), tokenizer, self.names, graders)
        values, warning = usable_values(job.id, values, self.home)
        if warning:
            self._add_event(job, warning, "copies", level="warn")
        recipe = values["recipe"]
        settings = ", ".join(f"{key}={recipe[key]}" for key in sorted(recipe) if key != "seed")
        self._add_event(job, f"Hyperparameters: {settings}", "hyperparameters")
        self.home.write_values(values)
        return values

    def _job_files(self, job: Job) -> "JobFiles":
        from train.jobs.examples import JobFiles

        def linked(name: str, file_id: str) -> Path:
            return self.home.link(name, self.files.held_path(job.id, file_id))

        validation = linked(VALIDATION_FILE, job.validation_file) if job.validation_file else None
        return JobFiles(linked(TRAINING_FILE, job.training_file), validation)

    def _reporter(self, job: Job, values: Mapping[str, Any]) -> "JobReporter":
        from train.jobs.checkpoints import can_ask_checkpoints
        from train.jobs.domain import domain_of_values
        from train.jobs.reporter import JobReporter

        config = domain_of_values(job.id, values)
        publish = self._publisher(job, config) if can_ask_checkpoints(config) else None
        yielding = YieldToClients(self.pressure, self.task.jobs.yield_at)
        return JobReporter(self.queue, job.id, self.task.worker, self.stop, yielding, publish)

    def _publisher(self, job: Job, config: "DomainConfig") -> "PublishCheckpoint":
        from adapters.bases import read_base
        from config.dataset import read_dataset
        from train.jobs.checkpoints import publish_checkpoint

        def publish(step: int, model: "Trainable", metrics: Mapping[str, float | None]) -> None:
            base_folder = self.home.bases / job.base
            dataset = read_dataset(self.home.datasets / config.name)
            version = publish_checkpoint(
                self.store, job, step, model, config, read_base(base_folder), dataset, base_folder, self.home.runs
            )
            name = model_name(job.base_name or job.base, job.owner, job.suffix, job.id, step)
            figures = {"step": float(step)} | dict(metrics)
            self.queue.add_checkpoint(
                job.id, self.task.worker, step, model_name=name, metrics=figures, version=version.lora_name
            )

        return publish

    def _add_event(self, job: Job, message: str, key: str, level: Literal["info", "warn"] = "info") -> None:
        self.queue.add_event(job.id, message, worker=self.task.worker, level=level, key=key)


def run(task: ChildTask, stop: StopRequest, report: Callable[[ChildReport], None]) -> int:
    """Run a task; returns its exit status, 0 on success."""
    home = Home(task.home)
    try:
        with JobsDatabase(home.jobs / "jobs.sqlite3") as database:
            process = JobProcess(task, database, stop)
            process.validate() if task.action == "validate" else process.train()
    except ClaimLostError as error:
        logger.warning("%s", error)
        return 1
    except Exception as error:
        failure = failure_of(error, home.jobs)
        if failure.code == "server_error":
            traceback.print_exc()
        report(ChildReport(failure=failure))
        return 1
    report(ChildReport())
    return 0


@contextmanager
def _locked(path: Path, tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a file lock, after waiting for other processes; a killed process releases its lock.

    Args:
        tell: Called before it waits.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start() -> int:
    """Run the task of the command line. Standard output has only the report; libraries print to standard error."""
    task = ChildTask.model_validate_json(sys.argv[1])
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stop = StopRequest()
    signal.signal(signal.SIGTERM, stop.request)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, to all its processes: the worker decides
    if task.action == "train":
        lower_priority(task.jobs.cpus)
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format=f"{task.job_id} %(message)s", stream=sys.stderr)
    return run(task, stop, lambda report: print(report.model_dump_json(), file=output, flush=True))


if __name__ == "__main__":
    sys.exit(_start())
