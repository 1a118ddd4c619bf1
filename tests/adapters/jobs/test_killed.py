"""Processes killed at each step of a change to files and jobs, and workers killed at any time.

Run as a script, this file is the process that is killed.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapters.jobs.errors import ClaimLostError
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Job
from tests.clock import FakeClock
from tests.jobs_home import JobsHome, a_job
from tests.tracked_files import ROOT

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

pytestmark = pytest.mark.slow

CHANGES_DISK = {"open", "os.rename", "os.remove", "os.mkdir"}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MODEL = "ft:b:acme:support:1"
NUM_STEPS = 12


class WallClock(FakeClock):
    """Real time, for processes that share it."""

    def __call__(self) -> float:
        return time.time()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KilledAt:
    """Kills this process before its n-th operation on the disk or statement of SQL."""

    def __init__(self, step: int, connection: sqlite3.Connection) -> None:
        self._left = step
        self._fsync = os.fsync
        os.fsync = self._counted_fsync  # an audit hook does not see it
        connection.set_trace_callback(lambda _statement: self._count())
        sys.addaudithook(self._see)

    def _see(self, name: str, arguments: tuple[object, ...]) -> None:
        if name in CHANGES_DISK - {"open"} or (
            name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITE_FLAGS
        ):
            self._count()

    def _counted_fsync(self, fd: "FileDescriptorLike") -> None:
        self._count()
        self._fsync(fd)

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            kill_self()


def change(home: JobsHome, act: str) -> None:
    """What is interrupted; `prepare` has made what it needs."""
    if act == "upload":
        home.stored(b"new", owner="globex")
    elif act == "delete":
        home.files.delete("acme", home.files.list("acme").items[0].id)
    elif act == "complete":
        upload_id, *parts = (home.folder.parent / "upload").read_text().split()
        home.uploads.complete("acme", upload_id, parts).finish()
    elif act == "submit":
        home.queue.submit(a_job("acme", home.files.list("acme").items[0].id, home.clock()))
    elif act == "claim":
        home.queue.claim("w2")
    else:
        home.queue.finish(job_of(home).id, "w1", "succeeded", fine_tuned_model=MODEL, version="acme-support@1")


def prepare(home: JobsHome, act: str) -> None:
    home.stored(b"old")
    if act == "complete":
        upload = home.uploads.create("acme", "fine-tune", "a", 6)
        with home.uploads.begin_part("acme", upload.id) as part:
            part.write(b"joined")
            part_id = part.finish().id
        (home.folder.parent / "upload").write_text(f"{upload.id} {part_id}")
    if act in ("claim", "finish"):
        home.submitted(file=home.files.list("acme").items[0])
    if act == "finish":
        home.queue.claim("w1")


def job_of(home: JobsHome) -> Job:
    return home.queue.list("acme").items[0]


def state(home: JobsHome) -> tuple[object, ...]:
    """What clients see: files with their content, uploads, jobs with their events, and models."""
    files = []
    for file in home.files.list(None).items:
        with home.files.open(None, file.id) as content:
            files.append((file.owner, content.read()))
    jobs = [(job.status, job.worker, home.messages(job)[1:]) for job in home.queue.list(None).items]
    with home.database.reading() as connection:
        uploads = [row[0] for row in connection.execute("SELECT status FROM uploads")]
        holds = connection.execute("SELECT count(*) FROM holds").fetchone()[0]
    return files, jobs, uploads, holds, home.names.find(MODEL) is not None


def after_kills(folder: Path, act: str) -> list[tuple[object, ...]]:
    """The states that processes leave that are killed before each step, and of the last one, which is not."""
    states: list[tuple[object, ...]] = []
    for step in range(1, 200):
        with JobsHome(folder / f"{step}" / "jobs") as home:
            prepare(home, act)
            states[:0] = [] if states else [state(home)]
        child = os.fork()
        if child == 0:
            with JobsHome(folder / f"{step}" / "jobs") as struck:
                KilledAt(step, struck.database._connection)
                change(struck, act)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with JobsHome(folder / f"{step}" / "jobs") as home:
            home.files.sweep()
            states.append(state(home))
            assert home.content("incoming") == []
            with home.database.reading() as connection:
                used = connection.execute(
                    "SELECT sha256 FROM files WHERE deleted_at IS NULL UNION SELECT sha256 FROM holds"
                )
                assert home.content() == sorted(row[0] for row in used)
                assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        if code == 0:
            return states
        assert code == -signal.SIGKILL
    raise AssertionError("it never came through")


@pytest.mark.parametrize("act", ["upload", "delete", "complete", "submit", "claim", "finish"])
def test_a_killed_change_happened_or_did_not(tmp_path, act):
    before, *states = after_kills(tmp_path, act)
    whole = states[-1]
    assert before != whole
    assert len(states) > 5
    assert set(map(repr, states)) == {repr(before), repr(whole)}


def test_a_half_upload_of_a_killed_process_is_gone(tmp_path):
    script = [sys.executable, str(Path(__file__).resolve()), "upload", str(tmp_path)]
    process = subprocess.Popen(script, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with JobsHome(tmp_path) as home:
        home.files.sweep()
        assert len(home.content("incoming")) == 1
        process.kill()
        process.communicate(timeout=10)
        home.files.sweep()
        assert (home.content("incoming"), home.content(), home.files.list(None).items) == ([], [], ())


def test_workers_killed_at_any_time_do_each_job_once(tmp_path):
    random_number = random.Random(26)
    with JobsHome(tmp_path / "jobs", clock=WallClock()) as home:
        jobs = [home.submitted(owner, started_at=None) for owner in ("acme", "globex", "initech") * 3]
        workers = [start_worker(home.folder, f"w{number}") for number in range(3)]
        for number in range(3, 18):
            time.sleep(random_number.uniform(0.05, 0.4))
            victim = workers.pop(random_number.randrange(3))
            victim.kill()
            victim.wait(timeout=10)
            workers.append(start_worker(home.folder, f"w{number}"))
        for worker in workers:
            assert worker.wait(timeout=120) == 0
        assert [home.queue.get(None, job.id).status for job in jobs] == ["succeeded"] * 9
        for job in jobs:
            assert_told_once(home, job)
    published = (tmp_path / "jobs" / "published").read_text().split()
    assert Counter(published) == Counter(job.id for job in jobs)


def assert_told_once(home: JobsHome, job: Job) -> None:
    events = home.queue.events_since(None, job.id, 0, 10_000)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    steps = [event.message for event in events if event.type == "metrics"]
    assert steps == [f"Step {step}" for step in range(1, NUM_STEPS + 1)]
    assert [event.message for event in events].count("The job has successfully completed") == 1


def start_worker(folder: Path, worker: str) -> "subprocess.Popen[bytes]":
    script = [sys.executable, str(Path(__file__).resolve()), "work", str(folder), worker]
    return subprocess.Popen(script, env=os.environ | {"PYTHONPATH": str(ROOT)})


def work(folder: Path, worker: str) -> None:
    """Train until no job is left, as a worker does: publish once, and find what a dead worker has published."""
    with JobsHome(folder, clock=WallClock()) as home:
        while set(home.queue.counts()) != {"succeeded"}:
            home.queue.release_lost(stale_after_s=1.0)
            job = home.queue.claim(worker)
            if job is None:
                time.sleep(0.05)
            else:
                train(home.queue, job.id, worker, folder / "published")


def train(queue: JobQueue, job_id: str, worker: str, published: Path) -> None:
    try:
        for step in range(1, NUM_STEPS + 1):
            queue.add_event(job_id, f"Step {step}", worker=worker, type="metrics", key=f"step {step}")
            queue.add_checkpoint(job_id, worker, step, model_name=f"ft:{job_id}:{step}", metrics={})
            queue.heartbeat(job_id, worker)
            time.sleep(0.01)
        if not (published.exists() and job_id in published.read_text()):
            with published.open("a") as file:
                file.write(f"{job_id}\n")
        queue.finish(job_id, worker, "succeeded", fine_tuned_model=f"ft:{job_id}", version="a@1")
    except ClaimLostError:
        pass


def send_half(folder: Path) -> None:
    with JobsHome(folder) as home:
        incoming = home.files.begin("acme", "fine-tune", "half")
        incoming.write(b"x" * (1 << 20))
        incoming.flush()
        print("half", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    SCRIPTS: dict[str, Callable[..., None]] = {"work": work, "upload": send_half}
    SCRIPTS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
