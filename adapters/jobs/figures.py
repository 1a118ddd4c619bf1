"""Figures of all jobs and batches, for metrics."""

import time
from collections.abc import Callable
from typing import Literal, get_args

from pydantic import Field

from adapters.jobs.database import JobsDatabase
from adapters.jobs.records import UNFINISHED_BATCH, BatchStatus, JobStatus
from adapters.jobs.rows import status_list
from adapters.store.record import Record

JobPhase = Literal["queued", "running"]
LineResult = Literal["completed", "failed"]

_FIGURES = """
SELECT coalesce(sum(trained_tokens), 0) AS trained_tokens,
       coalesce(sum(started_at - created_at), 0) AS queued_s,
       coalesce(sum(finished_at - started_at), 0) AS running_s,
       min(CASE WHEN status = 'queued' THEN created_at END) AS queued_since
FROM jobs
"""
_SILENT_SINCE = """
SELECT min(told_at) FROM (
    SELECT max(events.created_at) AS told_at FROM jobs JOIN events ON events.job_id = jobs.id
    WHERE jobs.status = 'running' GROUP BY jobs.id
)
"""
_BATCHES = f"""
SELECT coalesce(sum(num_completed), 0) AS completed, coalesce(sum(num_failed), 0) AS failed,
       min(CASE WHEN worker IS NULL AND status IN ({status_list(UNFINISHED_BATCH)})
           THEN created_at END) AS waiting_since
FROM batches
"""


class BatchFigures(Record):
    """Of all tenants together."""

    by_status: dict[BatchStatus, int]
    oldest_waiting_s: float = Field(description="Age of the oldest unfinished batch that no server works on.")
    lines: dict[LineResult, int] = Field(description="Lines that are done, of all batches.")


class JobFigures(Record):
    """Of all tenants together."""

    by_status: dict[JobStatus, int]
    oldest_queued_s: float = Field(description="Age of the oldest job that waits for a worker.")
    silent_s: float = Field(description="Longest time since the last event of a running job.")
    trained_tokens: int
    phase_s: dict[JobPhase, float] = Field(description="Seconds of jobs that have left the phase.")
    batches: BatchFigures


def job_figures(database: JobsDatabase, *, clock: Callable[[], float] = time.time) -> JobFigures:
    """Read the figures, as of one moment.

    Raises:
        JobsStoreError: The database cannot be read.
    """
    with database.reading() as connection:
        found = dict(connection.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall())
        row = connection.execute(_FIGURES).fetchone()
        silent_since = connection.execute(_SILENT_SINCE).fetchone()[0]
        found_batches = dict(connection.execute("SELECT status, count(*) FROM batches GROUP BY status").fetchall())
        batches = connection.execute(_BATCHES).fetchone()
    now = clock()
    return JobFigures(
        by_status={status: found.get(status, 0) for status in get_args(JobStatus)},
        oldest_queued_s=_age_s(row["queued_since"], now),
        silent_s=_age_s(silent_since, now),
        trained_tokens=row["trained_tokens"],
        phase_s={"queued": row["queued_s"], "running": row["running_s"]},
        batches=BatchFigures(
            by_status={status: found_batches.get(status, 0) for status in get_args(BatchStatus)},
            oldest_waiting_s=_age_s(batches["waiting_since"], now),
            lines={"completed": batches["completed"], "failed": batches["failed"]},
        ),
    )


def _age_s(since: float | None, now: float) -> float:
    """0 for what is not there."""
    return 0.0 if since is None else max(0.0, now - since)
