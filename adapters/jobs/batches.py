"""Batches: requests in a file that the server answers when it has room."""

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import ClaimLostError, InvalidStatusError, QuotaExceededError, UnknownIdError
from adapters.jobs.holds import hold, release_holds
from adapters.jobs.records import ENDED_BATCH, UNFINISHED_BATCH, Batch, BatchFault, BatchStatus, Page
from adapters.jobs.rows import find, find_page, insert, loaded, shown, status_list, update
from adapters.jobs.transitions import STALE_AFTER_S

_UNFINISHED = f"status IN ({status_list(UNFINISHED_BATCH)})"

_NEXT = f"""
SELECT batches.* FROM batches
LEFT JOIN (
    SELECT owner, count(*) AS running FROM batches WHERE {_UNFINISHED} AND worker IS NOT NULL GROUP BY owner
) AS busy ON busy.owner = batches.owner
WHERE worker IS NULL AND {_UNFINISHED} AND batches.owner NOT IN (SELECT value FROM json_each(:not_of))
    AND (:base IS NULL OR base IS NULL OR base = :base OR expires_at <= :now)
ORDER BY coalesce(running, 0), batches.seq LIMIT 1
"""


class BatchQueue:
    """The batches. Methods with `worker` raise `ClaimLostError` if that worker no longer has it, and change nothing.

    `owner` None means any tenant (the operator).
    """

    def __init__(self, database: JobsDatabase, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def submit(self, batch: Batch, *, max_unfinished: int | None = None) -> Batch:
        """Add a batch (`validating`), and hold its input's content.

        Raises:
            UnknownIdError: The input file does not exist; `param` is `input_file_id`.
            QuotaExceededError: The tenant has that many unfinished batches.
        """
        with self._database.writing() as connection:
            _check_unfinished(connection, batch.owner, max_unfinished)
            hold(connection, batch.id, batch.owner, batch.input_file_id, self._clock(), "input_file_id")
            return insert(connection, "batches", batch)

    def get(self, owner: str | None, batch_id: str) -> Batch:
        """Raises UnknownIdError."""
        with self._database.reading() as connection:
            return _find(connection, owner, batch_id)

    def list(self, owner: str | None, *, after: str | None = None, limit: int = 20) -> Page[Batch]:
        """Newest first, after the batch `after`.

        Raises:
            UnknownIdError: There is no batch `after`.
        """
        with self._database.reading() as connection:
            return find_page(connection, Batch, "batches", {"owner = ?": owner}, after=after, limit=limit)

    def cancel(self, owner: str | None, batch_id: str) -> Batch:
        """`cancelled` at once if no worker has begun it, else `cancelling` until a worker calls `finish`.

        Raises:
            UnknownIdError: No such batch.
            InvalidStatusError: It has ended.
        """
        with self._database.writing() as connection:
            batch = _find(connection, owner, batch_id)
            if batch.has_ended:
                raise InvalidStatusError(f"Batch {batch_id} has already ended: it is {batch.status}.")
            if batch.status != "cancelling":
                self._move(connection, batch, "cancelling")
            if batch.worker is None and batch.in_progress_at is None:
                self._end(connection, batch, "cancelled")
            return _find(connection, owner, batch_id)

    def counts(self) -> dict[BatchStatus, int]:
        """Batches by status, all tenants."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT status, count(*) FROM batches GROUP BY status")
            return {row[0]: row[1] for row in rows}

    def claim(self, worker: str, *, base: str | None = None, not_of: Collection[str] = ()) -> Batch | None:
        """Take an unfinished batch that nobody works on; its status stays as it is. None if there is none.

        The owner with the fewest claimed batches is next, then the oldest batch.

        Args:
            base: Leave batches for models of other bases to other servers until they expire; None: take any.
            not_of: Owners whose batches are left to others.
        """
        with self._database.writing() as connection:
            bounds = {"not_of": json.dumps([*not_of]), "base": base, "now": self._clock()}
            row = connection.execute(_NEXT, bounds).fetchone()
            if row is None:
                return None
            batch = loaded(Batch, row)
            update(connection, "batches", batch.id, worker=worker, heartbeat_at=self._clock())
            return _find(connection, None, batch.id)

    def heartbeat(self, batch_id: str, worker: str) -> BatchStatus:
        """Every few seconds. Returns the status: `cancelling` if the client wants an end."""
        with self._database.writing() as connection:
            batch = _claimed(connection, batch_id, worker)
            update(connection, "batches", batch_id, heartbeat_at=self._clock())
            return batch.status

    def start(self, batch_id: str, worker: str, num_total: int, model: str | None = None) -> Batch:
        """Its input is valid: `in_progress`; a cancelled one stays `cancelling`."""
        with self._database.writing() as connection:
            batch = _claimed(connection, batch_id, worker)
            self._move(connection, batch, "in_progress", num_total=num_total, model=model)
            return _find(connection, None, batch_id)

    def progress(
        self,
        batch_id: str,
        worker: str,
        *,
        num_completed: int,
        num_failed: int,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        """Counts since its start, not since the last call."""
        with self._database.writing() as connection:
            _claimed(connection, batch_id, worker)
            update(
                connection,
                "batches",
                batch_id,
                num_completed=num_completed,
                num_failed=num_failed,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
            )

    def finalize(self, batch_id: str, worker: str) -> Batch:
        """All lines are done, and the output is being written: `finalizing`; a cancelled one stays `cancelling`."""
        with self._database.writing() as connection:
            self._move(connection, _claimed(connection, batch_id, worker), "finalizing")
            return _find(connection, None, batch_id)

    def finish(
        self,
        batch_id: str,
        worker: str,
        status: BatchStatus,
        *,
        output_file_id: str | None = None,
        error_file_id: str | None = None,
        errors: Sequence[BatchFault] = (),
    ) -> Batch:
        """End it as completed, failed, expired or cancelled, and release its input.

        A second call with the same status returns the batch and changes nothing.

        Raises:
            InvalidStatusError: It has ended with another status.
        """
        assert status in ENDED_BATCH, status
        ending = {"output_file_id": output_file_id, "error_file_id": error_file_id, "errors": tuple(errors)}
        return self._database.with_reserve(lambda: self._finish(batch_id, worker, status, ending))

    def release(self, batch_id: str, worker: str) -> None:
        """Give it back unfinished, at shutdown."""
        with self._database.writing() as connection:
            _claimed(connection, batch_id, worker)
            update(connection, "batches", batch_id, worker=None, heartbeat_at=None)

    def release_lost(self, *, stale_after_s: float = STALE_AFTER_S, worker: str | None = None) -> tuple[Batch, ...]:
        """Give back batches of dead workers: those without heartbeat, or all of `worker`."""
        conditions: dict[str, Any] = {f"{_UNFINISHED} AND worker = ?": worker}
        if worker is None:  # a heartbeat from the future: the clock was set back
            conditions[f"{_UNFINISHED} AND worker IS NOT NULL AND abs(? - heartbeat_at) > ?"] = (
                self._clock(),
                stale_after_s,
            )
        with self._database.writing() as connection:
            lost = find(connection, Batch, "batches", conditions, "ORDER BY seq")
            for batch in lost:
                update(connection, "batches", batch.id, worker=None, heartbeat_at=None)
            return tuple(_find(connection, None, batch.id) for batch in lost)

    def _finish(self, batch_id: str, worker: str, status: BatchStatus, ending: dict[str, Any]) -> Batch:
        with self._database.writing() as connection:
            batch = _find(connection, None, batch_id)
            if not batch.has_ended:
                self._end(connection, _claimed(connection, batch_id, worker), status, **ending)
            elif batch.status != status:
                raise InvalidStatusError(f"Batch {batch_id} has ended as {batch.status}, not as {status}.")
            return _find(connection, None, batch_id)

    def _end(self, connection: sqlite3.Connection, batch: Batch, status: BatchStatus, **changes: Any) -> None:
        release_holds(connection, batch.id)
        at = {f"{status}_at": int(self._clock())}
        update(connection, "batches", batch.id, status=status, worker=None, heartbeat_at=None, **at, **changes)

    def _move(self, connection: sqlite3.Connection, batch: Batch, status: BatchStatus, **changes: Any) -> None:
        """The first time of a status is kept; nothing takes `cancelling` back."""
        if batch.status != "cancelling":
            changes["status"] = status
            if getattr(batch, f"{status}_at") is None:
                changes[f"{status}_at"] = int(self._clock())
        if changes:
            update(connection, "batches", batch.id, **changes)


def _find(connection: sqlite3.Connection, owner: str | None, batch_id: str) -> Batch:
    found = find(connection, Batch, "batches", {"id = ?": batch_id, "owner = ?": owner})
    if not found:
        raise UnknownIdError(f"No batch found with id '{shown(batch_id)}'.", param="batch_id")
    return found[0]


def _claimed(connection: sqlite3.Connection, batch_id: str, worker: str) -> Batch:
    batch = _find(connection, None, batch_id)
    if batch.worker != worker:
        raise ClaimLostError(f"The worker {worker!r} no longer has {batch_id!r}, which is {batch.status}.")
    return batch


def _check_unfinished(connection: sqlite3.Connection, owner: str, most: int | None) -> None:
    sql = f"SELECT count(*) FROM batches WHERE owner = ? AND {_UNFINISHED}"
    if most is not None and connection.execute(sql, (owner,)).fetchone()[0] >= most:
        raise QuotaExceededError(
            f"You have {most} unfinished batches, the most that a tenant may have. Wait for one, or cancel one.",
            code="rate_limit_exceeded",
        )
