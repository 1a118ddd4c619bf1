"""What a worker makes of its processes' ends, with small processes in place of trainings."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from adapters.jobs.errors import JobsDiskError
from adapters.jobs.queue import MAX_LOSSES, JobQueue
from adapters.jobs.records import Job, JobRequest
from adapters.store.manifest import JobRef
from config.jobs import JobsConfig
from tests.jobs_on_disk import JobsOnDisk, chat_lines, jobs_on_disk
from tests.peft_folders import draft_for, write_peft_folder
from train.jobs.child import ChildTask
from train.jobs.folder import JobHome
from train.jobs.stop import STOPPED
from train.jobs.worker import Worker

SLEEPS = "import time; print('half a li', flush=True); time.sleep(60)"
STOPS = f"import os, signal, time\nsignal.signal(15, lambda *_: os._exit({STOPPED}))\ntime.sleep(60)"
SUCCEEDS = "print('{}')"


def fails(code: str) -> str:
    failure = {"failure": {"code": code, "message": "It did not work.", "param": "training_file"}}
    return f"print('noise'); print({json.dumps(json.dumps(failure))})"


def killed(number: int = 9) -> str:
    return f"import os; os.kill(os.getpid(), {number})"


class BrokenQueue(JobQueue):
    """Of a disk without even the reserved space."""

    def finish(self, *_: object, **__: object) -> NoReturn:
        raise JobsDiskError("the disk is full")


@pytest.fixture
def disk(tmp_path: Path) -> JobsOnDisk:
    return jobs_on_disk(tmp_path)


@pytest.fixture
def make_worker(disk: JobsOnDisk) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(program: str, *, memory_bytes: int | None = None) -> Worker:
        worker = Worker(disk.home, disk.database, JobsConfig(memory_bytes=memory_bytes))
        worker.command = lambda task: [sys.executable, "-ISc", program]
        made.append(worker)
        return worker

    yield make
    for worker in made:
        for child in (worker.child, worker.validation):
            if child is not None:
                child.end()
                child.process.communicate()


def step_until(worker: Worker, is_reached: Callable[[], bool]) -> None:
    for _ in range(2000):
        worker._heartbeat_at = worker._looked_at = float("-inf")
        worker.step()
        if is_reached():
            return
        time.sleep(0.005)
    raise AssertionError("the worker did not get there")


def has_child(worker: Worker) -> bool:
    return worker.child is not None


def end_of(worker: Worker, disk: JobsOnDisk, job: Job) -> Job:
    """After one process for the job."""
    step_until(worker, lambda: worker.child is not None)
    step_until(worker, lambda: worker.child is None)
    return disk.queue.get(None, job.id)


def test_a_failure_is_the_error_of_its_job(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job = disk.submit()
    JobHome(disk.home.root, job.id).prepare()
    failed = end_of(make_worker(fails("invalid_training_file")), disk, job)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
    assert not JobHome(disk.home.root, job.id).folder.exists()


def test_a_killed_process_is_followed_by_another(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job = disk.submit()
    lost = end_of(make_worker(killed()), disk, job)
    assert (lost.status, lost.num_losses) == ("queued", 1)
    assert any("ended by signal 9" in message for message in disk.messages(job))


@pytest.mark.slow
def test_a_job_that_kills_its_processes_fails(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job = disk.submit()
    worker = make_worker(killed(11))
    for _ in range(MAX_LOSSES):
        lost = end_of(worker, disk, job)
    assert lost.status == "failed"


def test_cancel_ends_the_process_at_once(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job, worker = disk.submit(), make_worker(SLEEPS)
    step_until(worker, lambda: worker.child is not None)
    disk.queue.ask("acme", job.id, "cancel")
    step_until(worker, lambda: worker.child is None)
    cancelled = disk.queue.get(None, job.id)
    assert (cancelled.status, cancelled.num_losses) == ("cancelled", 0)
    assert not any("ended by signal" in message for message in disk.messages(job))


def test_a_cancelled_job_that_has_published_has_succeeded(
    disk: JobsOnDisk, make_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    job, worker = disk.submit(), make_worker(SLEEPS)
    step_until(worker, lambda: worker.child is not None)
    folder = write_peft_folder(tmp_path / "peft")
    worker.store.publish(folder, draft_for(folder, "colours", job=JobRef(id=job.id)))
    disk.queue.ask("acme", job.id, "cancel")
    step_until(worker, lambda: worker.child is None)
    ended = disk.queue.get(None, job.id)
    assert (ended.status, ended.version, len(ended.result_files)) == ("succeeded", "colours@1", 2)


def test_an_end_that_cannot_be_written_is_written_later(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job, worker = disk.submit(), make_worker(fails("training_diverged"))
    step_until(worker, lambda: worker.child is not None)
    queue = worker.queue
    worker.queue = BrokenQueue(disk.database)
    with pytest.raises(JobsDiskError):
        step_until(worker, lambda: worker.child is None)
    worker.queue = queue
    step_until(worker, lambda: worker.child is None)
    ended = disk.queue.get(None, job.id)
    assert ended.error is not None
    assert ended.error.code == "training_diverged"


@pytest.mark.slow
def test_pause_waits_for_the_checkpoint(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job, worker = disk.submit(), make_worker(STOPS)
    step_until(worker, lambda: worker.child is not None)
    time.sleep(0.3)  # its handler is there by then
    disk.queue.ask("acme", job.id, "pause")
    step_until(worker, lambda: worker.child is None)
    assert disk.queue.get(None, job.id).status == "paused"
    disk.queue.ask("acme", job.id, "resume")
    step_until(worker, lambda: worker.child is not None)


@pytest.mark.slow
def test_a_process_that_does_not_stop_is_killed(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job = disk.submit()
    worker = make_worker("import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)")
    step_until(worker, lambda: worker.child is not None)
    time.sleep(0.3)
    disk.queue.ask("acme", job.id, "pause")
    worker.clock = lambda: time.monotonic() + 61.0 if worker.child and worker.child.asked else time.monotonic()
    step_until(worker, lambda: worker.child is None)
    assert disk.queue.get(None, job.id).status == "paused"


@pytest.mark.slow
def test_a_stopped_worker_gives_its_job_back(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job, worker = disk.submit(), make_worker(STOPS)
    step_until(worker, lambda: worker.child is not None)
    time.sleep(0.3)
    worker.stop()
    worker.run(sleep=lambda seconds: time.sleep(0.01))
    assert worker.child is None
    given_back = disk.queue.get(None, job.id)
    assert (given_back.status, given_back.num_losses) == ("queued", 0)


@pytest.mark.slow
def test_too_much_memory_fails_the_job(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job = disk.submit()
    worker = make_worker("import time; held = bytearray(300 << 20); time.sleep(60)", memory_bytes=256 << 20)
    failed = end_of(worker, disk, job)
    assert failed.error is not None
    assert failed.error.code == "memory_exceeded"
    assert "the server allows 0.2 GiB" in failed.error.message


def test_a_job_taken_by_others_is_left_alone(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job, worker, other = disk.submit(), make_worker(SLEEPS), make_worker(SLEEPS)
    step_until(worker, lambda: worker.child is not None)
    disk.queue.release(job.id, worker.name, "taken away")
    step_until(other, lambda: other.child is not None)
    step_until(worker, lambda: worker.child is None)
    assert disk.queue.get(None, job.id).worker == other.name


def test_two_workers_never_have_the_same_job(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    jobs = {disk.submit(adapter="one").id, disk.submit(adapter="two").id}
    workers = [make_worker(SLEEPS), make_worker(SLEEPS)]
    for worker in workers:
        step_until(worker, partial(has_child, worker))
    assert {worker.child.job.id for worker in workers if worker.child} == jobs


def test_a_dead_workers_job_goes_on_at_once(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job, dead = disk.submit(), make_worker(SLEEPS)
    dead.name = f"{dead.name.partition(':')[0]}:{2**22 + 1}:dead"  # above the highest process id
    dead.step()
    worker = make_worker(SLEEPS)
    worker.step()
    assert worker.child is not None
    assert worker.child.job.id == job.id


def test_files_are_validated_beside_a_training(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    disk.submit()
    worker = make_worker(SLEEPS)
    step_until(worker, lambda: worker.child is not None)
    refused = disk.submit(chat_lines(12), status="validating_files", adapter="other")
    worker.command = lambda task: [sys.executable, "-ISc", fails("invalid_n_examples")]
    step_until(worker, lambda: disk.queue.get(None, refused.id).status == "failed")
    assert worker.child is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "memory_bytes", "code"),
    [
        (killed(), None, "worker_lost"),
        ("import time; held = bytearray(300 << 20); time.sleep(60)", 256 << 20, "memory_exceeded"),
    ],
    ids=["killed", "memory"],
)
def test_files_that_end_their_readers_are_refused(
    disk: JobsOnDisk, make_worker: Callable[..., Worker], program: str, memory_bytes: int | None, code: str
) -> None:
    """Else they would be read for ever, and no other job's files."""
    job = disk.submit(status="validating_files")
    worker = make_worker(program, memory_bytes=memory_bytes)
    step_until(worker, lambda: disk.queue.get(None, job.id).has_ended)
    refused = disk.queue.get(None, job.id)
    assert refused.error is not None
    assert (refused.status, refused.error.code) == ("failed", code)


@pytest.mark.parametrize(("asked", "is_told"), [("cancel", False), (None, True)])
def test_a_job_cancelled_while_it_is_read_has_not_failed(
    disk: JobsOnDisk,
    make_worker: Callable[..., Worker],
    caplog: pytest.LogCaptureFixture,
    asked: JobRequest | None,
    is_told: bool,
) -> None:
    job = disk.submit(status="validating_files")
    worker = make_worker(fails("invalid_training_file"))
    worker.step()
    if asked is not None:
        disk.queue.ask("acme", job.id, asked)
    step_until(worker, lambda: worker.validation is None)
    assert disk.queue.get(None, job.id).status == ("failed" if is_told else "cancelled")
    assert ("It did not work" in caplog.text) is is_told


def test_folders_of_ended_jobs_are_removed(disk: JobsOnDisk, make_worker: Callable[..., Worker]) -> None:
    job = disk.submit()
    home = JobHome(disk.home.root, job.id)
    home.prepare()
    disk.queue.ask("acme", job.id, "cancel")
    make_worker(SLEEPS).step()
    assert not home.folder.exists()


def test_a_process_is_told_all_that_it_needs(disk: JobsOnDisk) -> None:
    job = disk.submit()
    tasks: list[ChildTask] = []
    worker = Worker(disk.home, disk.database, JobsConfig(cpus=1), "http://127.0.0.1:8000/v1", "KEY")
    worker.command = lambda task: tasks.append(task) or [sys.executable, "-ISc", SUCCEEDS]  # type: ignore[func-returns-value]
    worker.step()
    assert worker.child is not None
    worker.child.process.wait()
    [task] = tasks
    assert (task.action, task.job_id, task.worker, task.jobs.cpus) == ("train", job.id, worker.name, 1)
    assert (task.grader_url, task.grader_api_key_env) == ("http://127.0.0.1:8000/v1", "KEY")
    step_until(worker, lambda: worker.child is None)
