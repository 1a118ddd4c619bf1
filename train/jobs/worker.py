"""`lorikeet worker`: takes jobs from the queue, one at a time, and runs each in a process of its own."""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import psutil
from pydantic import ValidationError

from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import ClaimLostError, JobsError, UnknownIdError
from adapters.jobs.files import FileStore
from adapters.jobs.queue import MAX_LOSSES, JobQueue
from adapters.jobs.records import Job, JobFailure
from adapters.store.store import AdapterStore
from config.children import bound
from config.home import Home
from config.jobs import JobsConfig
from train.jobs.child import ChildReport, ChildTask
from train.jobs.folder import JobHome, running_folders
from train.jobs.limits import used_bytes
from train.jobs.published import Published, find_version
from train.jobs.schedule import Schedule
from train.jobs.stop import STOPPED

_POLL_S = 0.25
_HEARTBEAT_S = 2.0
_RELEASE_EVERY_S = 10.0
_STOP_PATIENCE_S = 60.0
"""From SIGTERM to SIGKILL: time for a step, a checkpoint and its publication."""

logger = logging.getLogger(__name__)


@dataclass
class Child:
    """A running process of one job.

    Attributes:
        asked: Why it was asked to stop.
        failure: Why it was ended by the worker, as the job's error.
    """

    job: Job
    process: "subprocess.Popen[str]"
    started_at: float
    asked: str | None = None
    asked_at: float = 0.0
    failure: JobFailure | None = None

    def ask(self, reason: str, now: float) -> None:
        """Ask it to stop at a checkpoint; later calls have no effect."""
        if self.asked is None:
            self.asked, self.asked_at = reason, now
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        self.process.kill()

    @cached_property
    def report(self) -> ChildReport | None:
        """The report of an ended process; None if it was killed before the report was complete."""
        output, _ = self.process.communicate()
        try:
            return ChildReport.model_validate_json(output.strip().rpartition("\n")[2])
        except ValidationError:
            return None


def child_command(task: ChildTask) -> list[str]:
    """A process that ends with this one."""
    return bound([sys.executable, "-m", "train.jobs.child", task.model_dump_json()])


@dataclass
class Worker:
    """Claims jobs and runs them; `step` is one look at the queue and the running process.

    Attributes:
        grader_url: Where models of `score_model` graders are asked.
        clock: Seconds, for heartbeats and patience.
        command: The process that does a task.
    """

    home: Home
    database: JobsDatabase
    config: JobsConfig
    grader_url: str | None = None
    grader_api_key_env: str | None = None
    clock: Callable[[], float] = time.monotonic
    command: Callable[[ChildTask], list[str]] = child_command
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}")
    child: Child | None = None
    validation: Child | None = None
    is_stopping: bool = False
    _heartbeat_at: float = float("-inf")
    _released_at: float = float("-inf")
    _looked_at: float = float("-inf")
    _lost_validations: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.database)
        self.store = AdapterStore(self.home.adapters)
        self._schedule = Schedule(self.home, self.database, self.config.schedule)

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Work until `stop` is called and the running job has stopped at a checkpoint."""
        logger.info("Worker %s takes jobs from %s", self.name, self.home.jobs)
        while not self.is_stopping or self.child is not None:
            try:
                self.step()
            except JobsError as error:  # a full or locked disk: the next step tries again
                logger.warning("%s", error)
                sleep(_HEARTBEAT_S)
            sleep(_POLL_S)
        if self.validation is not None:
            self.validation.end()
            self.validation.process.communicate()

    def stop(self, *_: object) -> None:
        self.is_stopping = True

    def step(self) -> None:
        now = self.clock()
        if now - self._released_at >= _RELEASE_EVERY_S:
            self._released_at = now
            self._release_lost()
        if self.child is not None:
            self._attend(self.child, now)
        elif not self.is_stopping:
            self._schedule.step()
            self._claim(now)
        if not self.is_stopping:
            self._validate(now)

    def _claim(self, now: float) -> None:
        job = self.queue.claim(self.name, max_owner_seconds=self.config.max_training_s_per_day)
        if job is not None:
            logger.info("%s: training of %s on %s starts", job.id, job.adapter, job.base)
            self._heartbeat_at = now
            self.child = self._start(job, "train", now)

    def _start(self, job: Job, action: str, now: float) -> Child:
        task = ChildTask.model_validate(
            {
                "action": action,
                "home": self.home.root.absolute(),
                "job_id": job.id,
                "worker": self.name,
                "jobs": self.config,
                "grader_url": self.grader_url,
                "grader_api_key_env": self.grader_api_key_env,
            }
        )
        # In a session of its own: Ctrl-C in a terminal is for the worker, which stops it at a checkpoint.
        process = subprocess.Popen(self.command(task), stdout=subprocess.PIPE, text=True, start_new_session=True)
        return Child(job, process, now)

    def _attend(self, child: Child, now: float) -> None:
        """Check the running job: its end, requests of its client, and its memory."""
        if child.process.poll() is not None:
            self._end(child)  # again at the next step, if it cannot be written now
            self.child = None
            return
        if now - self._heartbeat_at >= _HEARTBEAT_S:
            self._heartbeat_at = now
            self._beat(child, now)
        if self.is_stopping:
            child.ask("stop", now)
        if child.asked is not None and now - child.asked_at > _STOP_PATIENCE_S:
            child.end()

    def _beat(self, child: Child, now: float) -> None:
        try:
            requested = self.queue.heartbeat(child.job.id, self.name)
        except ClaimLostError:
            child.asked = "lost"
            child.end()
            return
        if requested == "cancel":
            child.asked = "cancel"
            child.end()
        elif requested == "pause":
            child.ask("pause", now)
        self._bound_memory(child)

    def _bound_memory(self, child: Child) -> None:
        limit = self.config.memory_bytes
        if limit is not None and (used := used_bytes(child.process.pid)) > limit:
            message = (
                f"The job used {used / 2**30:.1f} GiB of memory; the server allows {limit / 2**30:.1f} GiB "
                "(`jobs.memory_bytes`). Use a smaller batch_size, or shorter examples."
            )
            child.failure = JobFailure(code="memory_exceeded", message=message)
            child.end()

    def _end(self, child: Child) -> None:
        """The process of a job has ended: by itself, because it was asked to, or because it was killed."""
        job, status, report = child.job, child.process.wait(), child.report
        failure = child.failure or (report.failure if report else None)
        try:
            if report is not None and failure is None:
                self._forget(job)
            elif child.asked == "cancel":
                self._cancelled(job)
            elif failure is not None:
                self._failed(job, failure)
            elif child.asked == "pause":
                self.queue.paused(job.id, self.name)
            elif child.asked == "stop" or status == STOPPED:
                self.queue.release(job.id, self.name, "The worker stops; the job continues from its last checkpoint")
            elif child.asked != "lost":
                logger.warning("%s: its process ended with status %d", job.id, status)
                self._lost(job, status)
        except ClaimLostError as error:
            logger.warning("%s", error)

    def _cancelled(self, job: Job) -> None:
        """The files of its training go, and its checkpoints stay; a model that was published already is its result."""
        manifest = find_version(self.store, job)
        if manifest is not None:
            files = FileStore(self.database, self.home.jobs)
            Published(self.queue, files, self.store, self.name).finish(job, manifest)
        else:
            self.queue.finish(job.id, self.name, "cancelled")
        self._forget(job)

    def _failed(self, job: Job, failure: JobFailure) -> None:
        """Its folder goes first: on a full disk that makes the room to say so."""
        self._forget(job)
        logger.warning("%s failed: %s", job.id, failure.message)
        self.database.with_reserve(lambda: self.queue.finish(job.id, self.name, "failed", error=failure))
        self.database.restore_reserve()

    def _lost(self, job: Job, status: int) -> None:
        ended = f"by signal {-status}" if status < 0 else f"with status {status}"
        message = f"The training process ended {ended}; the job continues from its last checkpoint"
        self.queue.add_event(job.id, message, worker=self.name, level="warn")
        for lost in self.queue.release_lost(worker=self.name):
            if lost.has_ended:
                self._forget(lost)

    def _release_lost(self) -> None:
        """Give back jobs of workers that are gone: of this machine's at once, of others' after a while."""
        running = self.queue.list(None, statuses=("running",), limit=100).items
        gone = {job.worker for job in running if job.worker and job.worker != self.name and _is_gone(job.worker)}
        lost = [job for worker in gone for job in self.queue.release_lost(worker=worker)]
        for job in (*lost, *self.queue.release_lost()):
            logger.warning("%s: its worker has died; the job is %s", job.id, job.status)
        for folder in running_folders(self.home):
            if self._has_ended(folder.name):
                JobHome(self.home.root, folder.name).remove()

    def _has_ended(self, job_id: str) -> bool:
        """Also of a job that was cancelled while it was paused, or whose worker died after its end."""
        try:
            return self.queue.get(None, job_id).has_ended
        except UnknownIdError:
            return True

    def _validate(self, now: float) -> None:
        """Read the files of submitted jobs, one job at a time, beside a training."""
        if self.validation is not None:
            if self.validation.process.poll() is None:
                if now - self._looked_at >= _HEARTBEAT_S:
                    self._looked_at = now
                    self._bound_memory(self.validation)
                return
            validated, self.validation = self.validation, None
            if (failure := self._fault_of(validated)) is not None:
                self._refused(validated.job, failure)
        waiting = self.queue.list(None, statuses=("validating_files",), limit=100).items
        if waiting:
            self.validation = self._start(waiting[-1], "validate", now)

    def _fault_of(self, validated: Child) -> JobFailure | None:
        """Why a job is refused, if it is: also one whose files end its processes, or no other job would be read."""
        job, report = validated.job, validated.report
        if validated.failure is not None or report is not None:
            self._lost_validations.pop(job.id, None)
            return validated.failure or (report.failure if report else None)
        self._lost_validations[job.id] += 1
        logger.warning("%s: its validation ended with status %d", job.id, validated.process.wait())
        if self._lost_validations[job.id] < MAX_LOSSES:
            return None
        del self._lost_validations[job.id]
        message = f"{MAX_LOSSES} processes in a row died while they read the job's files. The server's log has more."
        return JobFailure(code="worker_lost", message=message, param="training_file")

    def _refused(self, job: Job, failure: JobFailure) -> None:
        self._forget(job)
        if self.queue.refused(job.id, failure).status == "failed":  # not if it was cancelled meanwhile
            logger.warning("%s failed: %s", job.id, failure.message)

    def _forget(self, job: Job) -> None:
        JobHome(self.home.root, job.id).remove()


def _is_gone(worker: str) -> bool:
    """Whether a worker of this machine is not running any more."""
    host, _, rest = worker.partition(":")
    process_id = rest.partition(":")[0]
    return host == socket.gethostname() and process_id.isdigit() and not psutil.pid_exists(int(process_id))
