"""Events and checkpoints of a job, within a transaction of the queue."""

import sqlite3
from collections.abc import Mapping
from typing import Any

from adapters.jobs.records import Checkpoint, EventLevel, EventType, Job, JobEvent, TunedModel, new_id
from adapters.jobs.rows import find, insert, update


def append_event(
    connection: sqlite3.Connection,
    job_id: str,
    message: str,
    at: float,
    *,
    level: EventLevel = "info",
    type: EventType = "message",
    data: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> JobEvent:
    """Add an event; one with the same key is returned instead, if there is one."""
    if key is not None and (known := find(connection, JobEvent, "events", {"job_id = ?": job_id, "key = ?": key})):
        return known[0]
    last = connection.execute("SELECT coalesce(max(number), 0) FROM events WHERE job_id = ?", (job_id,)).fetchone()[0]
    event = JobEvent(
        id=new_id("ftevent-"),
        job_id=job_id,
        number=last + 1,
        key=key,
        created_at=int(at),
        level=level,
        type=type,
        message=message,
        data=None if data is None else dict(data),
    )
    return insert(connection, "events", event)


def append_checkpoint(
    connection: sqlite3.Connection,
    job: Job,
    step_number: int,
    at: float,
    *,
    model_name: str,
    metrics: Mapping[str, float | None],
    version: str | None,
) -> Checkpoint:
    """Add a checkpoint, and its name as a model; the one of that step is returned instead, if there is one."""
    of_step = {"job_id = ?": job.id, "step_number = ?": step_number}
    if known := find(connection, Checkpoint, "checkpoints", of_step):
        return known[0]
    checkpoint = Checkpoint(
        id=new_id("ftckpt_"),
        job_id=job.id,
        created_at=int(at),
        step_number=step_number,
        metrics=dict(metrics),
        fine_tuned_model_checkpoint=model_name,
        version=version,
    )
    added = insert(connection, "checkpoints", checkpoint)
    update(connection, "jobs", job.id, num_losses=0)
    if version is not None:
        add_model(connection, job, model_name, version, at)
    return added


def add_model(connection: sqlite3.Connection, job: Job, name: str, version: str, at: float) -> None:
    """Make a name stand for a version."""
    model = TunedModel(name=name, owner=job.owner, version=version, base=job.base, job_id=job.id, created_at=int(at))
    insert(connection, "models", model, "INSERT OR REPLACE")
