"""Changes of a job's status, each with its event, within a transaction of the queue."""

import sqlite3
from collections.abc import Mapping
from typing import Any, Literal

from adapters.jobs.errors import (
    ClaimLostError,
    InvalidStatusError,
    NameTakenError,
    QuotaExceededError,
    UnknownIdError,
)
from adapters.jobs.events import add_model, append_event
from adapters.jobs.holds import hold, release_holds
from adapters.jobs.records import UNFINISHED_JOB, EventLevel, Job, JobFailure, JobStatus
from adapters.jobs.rows import find, insert, shown, status_list, update
from adapters.jobs.usage import spend

STALE_AFTER_S = 30.0
MAX_LOSSES = 5
"""Workers that may die with a job since its last checkpoint before it fails."""

Action = Literal["cancel", "pause", "resume"]

_VALIDATING = "Validating training file"
_VALIDATED = "Files validated, moving job to queued state"


def find_job(connection: sqlite3.Connection, owner: str | None, job_id: str) -> Job:
    """Raises UnknownIdError."""
    found = find(connection, Job, "jobs", {"id = ?": job_id, "owner = ?": owner})
    if not found:
        raise UnknownIdError(
            f"Could not find fine tune: {shown(job_id)}", code="fine_tune_not_found", param="fine_tune_id"
        )
    return found[0]


def claimed_job(connection: sqlite3.Connection, job_id: str, worker: str) -> Job:
    """Raises ClaimLostError if it is not this worker's."""
    job = find_job(connection, None, job_id)
    if job.status != "running" or job.worker != worker:
        raise ClaimLostError(f"The worker {worker!r} no longer has {job_id!r}, which is {job.status}.")
    return job


def add_job(connection: sqlite3.Connection, job: Job, now: float, max_unfinished: int | None) -> Job:
    """Returns it as it is stored; raises UnknownIdError, NameTakenError or QuotaExceededError."""
    _check_unfinished(connection, job.owner, max_unfinished)
    hold(connection, job.id, job.owner, job.training_file, now, "training_file")
    if job.validation_file is not None:
        hold(connection, job.id, job.owner, job.validation_file, now, "validation_file")
    _reserve(connection, job.adapter, job.owner)
    added = insert(connection, "jobs", job)
    append_event(connection, job.id, f"Created fine-tuning job: {job.id}", now)
    append_event(connection, job.id, _VALIDATING if job.status == "validating_files" else _VALIDATED, now)
    return added


def pass_validation(connection: sqlite3.Connection, job: Job, now: float) -> None:
    if job.status == "validating_files":
        _move(connection, job, "queued", _VALIDATED, now)


def begin_job(connection: sqlite3.Connection, job: Job, worker: str, now: float) -> None:
    message = "Fine-tuning job started" if job.started_at is None else "Fine-tuning job continues"
    started_at = int(now) if job.started_at is None else job.started_at
    _move(connection, job, "running", message, now, worker=worker, heartbeat_at=now, started_at=started_at)


def ask_job(connection: sqlite3.Connection, job: Job, action: Action, now: float) -> None:
    """Raises InvalidStatusError."""
    if job.has_ended:
        raise InvalidStatusError(f"Job {job.id} has already ended: it is {job.status}, and cannot {action}.")
    if job.status == "running":
        _ask_worker(connection, job, action)
    elif action == "cancel":
        end_job(connection, job, "cancelled", now)
    elif action == "pause":
        pause_job(connection, job, now)
    elif job.status == "paused":
        _move(connection, job, "queued", "Fine-tuning job resumed, and waits for a worker", now)
    else:
        raise InvalidStatusError(f"Job {job.id} is {job.status}; only a paused job can resume.")


def revoke_job(connection: sqlite3.Connection, job: Job, error: JobFailure, now: float) -> None:
    """Cancel a job that its client has not cancelled, with the reason as its error."""
    update(connection, "jobs", job.id, error=error)
    ask_job(connection, find_job(connection, None, job.id), "cancel", now)


def pause_job(connection: sqlite3.Connection, job: Job, now: float) -> None:
    """It stops unfinished; for good, if its client has asked a worker to cancel it."""
    if job.requested == "cancel":
        end_job(connection, job, "cancelled", now)
    elif job.status != "paused":
        _move(connection, job, "paused", "Fine-tuning job paused", now)


def count_seconds(connection: sqlite3.Connection, job: Job, now: float) -> None:
    """Count the time since the last heartbeat for the owner; the last heartbeat is now."""
    spend(connection, job, now, STALE_AFTER_S)
    update(connection, "jobs", job.id, heartbeat_at=now)


def give_back(connection: sqlite3.Connection, job: Job, reason: str, now: float, level: EventLevel = "info") -> None:
    """A worker is done with an unfinished job: what its client has asked for happens now."""
    append_event(connection, job.id, reason, now, level=level)
    if job.requested is not None:
        pause_job(connection, job, now)
    else:
        _move(connection, job, "queued", "Fine-tuning job waits for a worker", now)


def lose(connection: sqlite3.Connection, job: Job, now: float) -> None:
    """The worker has died: the job waits for another one, unless too many have died with it."""
    losses = job.num_losses + 1
    update(connection, "jobs", job.id, num_losses=losses)
    if losses < MAX_LOSSES or job.requested is not None:
        give_back(connection, job, f"The worker {job.worker!r} was lost", now, "warn")
        return
    message = (
        f"{losses} workers in a row died with this job since its last checkpoint. The server's log has the reason; "
        "it may need more memory."
    )
    end_job(connection, job, "failed", now, {"error": JobFailure(code="worker_lost", message=message)})


def end_job(
    connection: sqlite3.Connection, job: Job, status: JobStatus, now: float, ending: Mapping[str, Any] | None = None
) -> None:
    """End it, with the columns `ending`: its files are released, and its model gets its name."""
    changes = dict(ending or {})
    if status == "cancelled":
        changes["error"] = job.error  # of `revoke_job`
    release_holds(connection, job.id)
    name, version, error = (changes.get(column) for column in ("fine_tuned_model", "version", "error"))
    if name is not None and version is not None:
        add_model(connection, job, name, version, now)
        append_event(connection, job.id, f"New fine-tuned model created: {name}", now)
    level: EventLevel = "error" if status == "failed" else "info"
    _move(connection, job, status, _last_words(status, error), now, level, finished_at=int(now), **changes)


def _move(
    connection: sqlite3.Connection,
    job: Job,
    status: JobStatus,
    message: str,
    now: float,
    level: EventLevel = "info",
    **changes: Any,
) -> None:
    """Change the status, and report it as an event; without a worker unless `changes` name one."""
    free = {"worker": None, "heartbeat_at": None, "requested": None, "estimated_finish": None}
    update(connection, "jobs", job.id, status=status, **(free | changes))
    append_event(connection, job.id, message, now, level=level)


def _ask_worker(connection: sqlite3.Connection, job: Job, action: Action) -> None:
    if action == "resume" and job.requested != "pause":
        raise InvalidStatusError(f"Job {job.id} is running; only a paused job can resume.")
    if job.requested != "cancel":  # a cancellation cannot be taken back
        update(connection, "jobs", job.id, requested=None if action == "resume" else action)


def _check_unfinished(connection: sqlite3.Connection, owner: str, most: int | None) -> None:
    sql = f"SELECT count(*) FROM jobs WHERE owner = ? AND status IN ({status_list(UNFINISHED_JOB)})"
    if most is not None and connection.execute(sql, (owner,)).fetchone()[0] >= most:
        raise QuotaExceededError(
            f"You have {most} unfinished fine-tuning jobs, the most that a tenant may have. Wait, or cancel one.",
            code="rate_limit_exceeded",
        )


def _reserve(connection: sqlite3.Connection, adapter: str, owner: str) -> None:
    connection.execute("INSERT OR IGNORE INTO adapter_owners VALUES (?, ?)", (adapter, owner))
    if connection.execute("SELECT owner FROM adapter_owners WHERE adapter = ?", (adapter,)).fetchone()[0] != owner:
        raise NameTakenError(f"The adapter name {adapter!r} is taken. Choose another suffix.", param="suffix")


def _last_words(status: JobStatus, error: JobFailure | None) -> str:
    if status == "succeeded":
        return "The job has successfully completed"
    if status == "cancelled":
        return f"The job was cancelled: {error.message}" if error else "The job was cancelled"
    return f"The job failed: {error.message}" if error else "The job failed"
