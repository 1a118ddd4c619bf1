"""Fine-tuning jobs: what clients ask for, and what workers report.

validating_files ─ validated ─> queued ─ claim ─> running ─ finish ─> succeeded | failed | cancelled
                                  ^                  │
                                  ├─ release, lost ──┤
                                  └─ resume ─ paused <┘
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import InvalidStatusError
from adapters.jobs.events import append_checkpoint, append_event
from adapters.jobs.records import (
    UNFINISHED_JOB,
    Checkpoint,
    EventLevel,
    EventType,
    Job,
    JobEvent,
    JobFailure,
    JobRequest,
    JobStatus,
    Page,
)
from adapters.jobs.rows import find, find_page, status_list, update
from adapters.jobs.transitions import (
    MAX_LOSSES,
    STALE_AFTER_S,
    Action,
    add_job,
    ask_job,
    begin_job,
    claimed_job,
    count_seconds,
    end_job,
    find_job,
    give_back,
    lose,
    pass_validation,
    pause_job,
    revoke_job,
)
from adapters.jobs.usage import DAY_S, next_job, used_seconds

__all__ = ["MAX_LOSSES", "STALE_AFTER_S", "JobQueue"]

_HAS_METADATA = "EXISTS (SELECT 1 FROM json_each(metadata) AS pair WHERE pair.key = ? AND pair.value = ?)"

_UNFINISHED_OF_KEYS = f"status IN ({status_list(UNFINISHED_JOB)}) AND requested IS NOT 'cancel'"

RecordT = TypeVar("RecordT", JobEvent, Checkpoint)


class JobQueue:
    """The queue. Methods with `worker` raise `ClaimLostError` if that worker no longer has the job, and change nothing.

    `owner` None means any tenant (the operator). Another tenant's job is an `UnknownIdError`, like one that never was.

    Args:
        clock: Seconds since the epoch; it must be the same for all processes.
    """

    def __init__(self, database: JobsDatabase, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def submit(self, job: Job, *, max_unfinished: int | None = None) -> Job:
        """Add a job, hold its files' content, reserve its adapter's name for its owner, and write its first events.

        Args:
            job: `validating_files`, then some worker calls `validated`; or `queued`, if its files are valid.
            max_unfinished: Jobs that its owner may have that have not ended.

        Raises:
            UnknownIdError: A file does not exist; `param` is `training_file` or `validation_file`.
            NameTakenError: The adapter's name is another tenant's.
            QuotaExceededError: The tenant has that many unfinished jobs.
        """
        with self._database.writing() as connection:
            return add_job(connection, job, self._clock(), max_unfinished)

    def get(self, owner: str | None, job_id: str) -> Job:
        """Raises UnknownIdError."""
        with self._database.reading() as connection:
            return find_job(connection, owner, job_id)

    def list(
        self,
        owner: str | None,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
        statuses: Sequence[JobStatus] = (),
        has_no_metadata: bool = False,
        from_version: str | None = None,
    ) -> Page[Job]:
        """Newest first, after the job `after`; with all these metadata, in one of these statuses.

        Args:
            has_no_metadata: Only jobs without any.
            from_version: Only jobs that go on from it.

        Raises:
            UnknownIdError: There is no job `after`.
        """
        mine = {"owner = ?": owner}
        asked: dict[str, Any] = mine | {"from_version = ?": from_version}
        if statuses:
            asked[f"status IN ({', '.join('?' * len(statuses))})"] = tuple(statuses)
        if metadata:
            pairs = tuple(text for pair in metadata.items() for text in pair)
            asked[" AND ".join([_HAS_METADATA] * len(metadata))] = pairs
        if has_no_metadata:
            asked["metadata IS NULL AND ?"] = 1
        with self._database.reading() as connection:
            return find_page(connection, Job, "jobs", asked, after=after, limit=limit, after_conditions=mine)

    def ask(self, owner: str | None, job_id: str, action: Action) -> Job:
        """Cancel, pause or resume; at once if no worker has the job, else the worker is asked at its next heartbeat.

        Returns:
            The job as it is now: a running one stays `running`, with `requested`, until its worker has stopped it.

        Raises:
            UnknownIdError: No such job.
            InvalidStatusError: It has ended; or it is to resume and is not paused.
        """
        return self._database.with_reserve(lambda: self._ask(owner, job_id, action))

    def unfinished_keys(self) -> frozenset[str]:
        """Ids of the API keys that have created unfinished jobs; without jobs that are being cancelled."""
        with self._database.reading() as connection:
            sql = f"SELECT DISTINCT key_id FROM jobs WHERE key_id != '' AND {_UNFINISHED_OF_KEYS}"
            return frozenset(str(row[0]) for row in connection.execute(sql))

    def revoke(self, key_id: str, error: JobFailure) -> tuple[Job, ...]:
        """Cancel all unfinished jobs of an API key, with the reason as their error; returns them as they were.

        One that runs is cancelled at its worker's next heartbeat.
        """
        with self._database.writing() as connection:
            jobs = find(connection, Job, "jobs", {"key_id = ?": key_id, f"{_UNFINISHED_OF_KEYS} AND ?": 1})
            for job in jobs:
                revoke_job(connection, job, error, self._clock())
            return jobs

    def events(self, owner: str | None, job_id: str, *, after: str | None = None, limit: int = 20) -> Page[JobEvent]:
        """Newest first, after the event `after`.

        Raises:
            UnknownIdError: No such job, or no such event.
        """
        return self._page(JobEvent, "events", owner, job_id, after, limit)

    def events_since(self, owner: str | None, job_id: str, number: int, limit: int = 100) -> tuple[JobEvent, ...]:
        """Events with a greater number, oldest first: to follow a job."""
        with self._database.reading() as connection:
            find_job(connection, owner, job_id)
            newer = {"job_id = ?": job_id, "number > ?": number}
            return find(connection, JobEvent, "events", newer, f"ORDER BY number LIMIT {int(limit)}")

    def checkpoints(
        self, owner: str | None, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> Page[Checkpoint]:
        """Newest first, after the checkpoint `after`."""
        return self._page(Checkpoint, "checkpoints", owner, job_id, after, limit)

    def counts(self) -> dict[JobStatus, int]:
        """Jobs by status, all tenants."""
        with self._database.reading() as connection:
            return {row[0]: row[1] for row in connection.execute("SELECT status, count(*) FROM jobs GROUP BY status")}

    def oldest_queued_s(self) -> float:
        """Seconds that the oldest job has been waiting for a worker; 0 if none waits."""
        with self._database.reading() as connection:
            since = connection.execute("SELECT min(created_at) FROM jobs WHERE status = 'queued'").fetchone()[0]
        return 0.0 if since is None else max(0.0, self._clock() - since)

    def used_seconds(self, owner: str, within_s: float = DAY_S) -> float:
        """Seconds that workers have spent on a tenant's jobs lately; hours that began within that time count."""
        with self._database.reading() as connection:
            return used_seconds(connection, owner, self._clock(), within_s)

    def validated(self, job_id: str) -> Job:
        """Move from `validating_files` to `queued`; does nothing if it is not validating any more."""
        with self._database.writing() as connection:
            pass_validation(connection, find_job(connection, None, job_id), self._clock())
            return find_job(connection, None, job_id)

    def refused(self, job_id: str, error: JobFailure) -> Job:
        """Its files cannot be trained on: `failed`; does nothing if it is not validating any more."""
        return self._database.with_reserve(lambda: self._refused(job_id, error))

    def claim(self, worker: str, *, max_owner_seconds: float | None = None) -> Job | None:
        """Take a queued job: it is `running` now. None if there is none. No two workers ever get the same job.

        The owner with the fewest running jobs is next, then the one with the fewest seconds used in the last day, then
        the oldest job.

        Args:
            worker: Unique for each process, e.g. host, process id and a random word.
            max_owner_seconds: Jobs of owners who have used more in the last day wait.
        """
        with self._database.writing() as connection:
            job = next_job(connection, self._clock(), max_owner_seconds)
            if job is None:
                return None
            begin_job(connection, job, worker, self._clock())
            return find_job(connection, None, job.id)

    def heartbeat(self, job_id: str, worker: str) -> JobRequest | None:
        """Every few seconds while the job runs; counts the seconds for its owner. Returns what the client asks for."""
        return self._database.with_reserve(lambda: self._heartbeat(job_id, worker))

    def progress(
        self, job_id: str, worker: str, *, trained_tokens: int | None = None, estimated_finish: int | None = None
    ) -> None:
        """`trained_tokens` only ever rises: after a restart it stays until the job is past it again."""
        with self._database.writing() as connection:
            job = claimed_job(connection, job_id, worker)
            tokens = max(trained_tokens or 0, job.trained_tokens or 0) or None
            finish = job.estimated_finish if estimated_finish is None else estimated_finish
            update(connection, "jobs", job_id, trained_tokens=tokens, estimated_finish=finish)

    def add_event(
        self,
        job_id: str,
        message: str,
        *,
        worker: str | None = None,
        level: EventLevel = "info",
        type: EventType = "message",
        data: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> JobEvent:
        """Add an event; one with the same key is returned instead, if there is one.

        Args:
            worker: Whoever has the job; None for events that do not come from its worker.
            key: E.g. `step 40`: a step that is trained again after a restart is reported once.
        """
        with self._database.writing() as connection:
            if worker is None:
                find_job(connection, None, job_id)
            else:
                claimed_job(connection, job_id, worker)
            now = self._clock()
            return append_event(connection, job_id, message, now, level=level, type=type, data=data, key=key)

    def add_checkpoint(
        self,
        job_id: str,
        worker: str,
        step_number: int,
        *,
        model_name: str,
        metrics: Mapping[str, float | None],
        version: str | None = None,
    ) -> Checkpoint:
        """Add a checkpoint, and its name as a model if it has a version; the one of that step, if there is one."""
        with self._database.writing() as connection:
            job = claimed_job(connection, job_id, worker)
            return append_checkpoint(
                connection,
                job,
                step_number,
                self._clock(),
                model_name=model_name,
                metrics=metrics,
                version=version,
            )

    def paused(self, job_id: str, worker: str) -> Job:
        """The worker has stopped it as asked: `paused`, or `cancelled` if the client has asked for that since."""
        with self._database.writing() as connection:
            job = claimed_job(connection, job_id, worker)
            count_seconds(connection, job, self._clock())
            pause_job(connection, job, self._clock())
            return find_job(connection, None, job_id)

    def release(self, job_id: str, worker: str, reason: str) -> Job:
        """Give it back unfinished, e.g. to yield to clients or at shutdown: `queued`; not a loss."""
        with self._database.writing() as connection:
            job = claimed_job(connection, job_id, worker)
            count_seconds(connection, job, self._clock())
            give_back(connection, job, reason, self._clock())
            return find_job(connection, None, job_id)

    def release_lost(self, *, stale_after_s: float = STALE_AFTER_S, worker: str | None = None) -> tuple[Job, ...]:
        """Give back jobs of dead workers: those without heartbeat, or all of `worker`, whose process has ended.

        They are `queued`, or as the client had asked `paused` or `cancelled`; after `MAX_LOSSES` they are `failed`.
        """
        return self._database.with_reserve(lambda: self._release_lost(stale_after_s, worker))

    def finish(
        self,
        job_id: str,
        worker: str,
        status: Literal["succeeded", "failed", "cancelled"],
        *,
        fine_tuned_model: str | None = None,
        version: str | None = None,
        result_files: Sequence[str] = (),
        trained_tokens: int | None = None,
        error: JobFailure | None = None,
    ) -> Job:
        """End a job: one transaction with its model's name, its last event and the release of its files.

        A second call with the same status returns the job and changes nothing.

        Raises:
            InvalidStatusError: It has ended with another status.
        """
        ending: dict[str, Any] = {
            "fine_tuned_model": fine_tuned_model,
            "version": version,
            "result_files": tuple(result_files),
            "error": error,
        }
        if trained_tokens is not None:
            ending["trained_tokens"] = trained_tokens
        return self._database.with_reserve(lambda: self._finish(job_id, worker, status, ending))

    def _page(
        self, record: type[RecordT], table: str, owner: str | None, job_id: str, after: str | None, limit: int
    ) -> Page[RecordT]:
        with self._database.reading() as connection:
            find_job(connection, owner, job_id)
            return find_page(connection, record, table, {"job_id = ?": job_id}, after=after, limit=limit)

    def _ask(self, owner: str | None, job_id: str, action: Action) -> Job:
        with self._database.writing() as connection:
            ask_job(connection, find_job(connection, owner, job_id), action, self._clock())
            return find_job(connection, owner, job_id)

    def _heartbeat(self, job_id: str, worker: str) -> JobRequest | None:
        with self._database.writing() as connection:
            job = claimed_job(connection, job_id, worker)
            count_seconds(connection, job, self._clock())
            return job.requested

    def _release_lost(self, stale_after_s: float, worker: str | None) -> tuple[Job, ...]:
        now = self._clock()
        conditions: dict[str, Any] = {"status = ?": "running", "worker = ?": worker}
        if worker is None:  # a heartbeat from the future: the clock was set back
            conditions["abs(? - heartbeat_at) > ?"] = (now, stale_after_s)
        with self._database.writing() as connection:
            lost = find(connection, Job, "jobs", conditions, "ORDER BY seq")
            for job in lost:
                lose(connection, job, now)
            return tuple(find_job(connection, None, job.id) for job in lost)

    def _refused(self, job_id: str, error: JobFailure) -> Job:
        with self._database.writing() as connection:
            job = find_job(connection, None, job_id)
            if job.status == "validating_files":
                end_job(connection, job, "failed", self._clock(), {"error": error})
            return find_job(connection, None, job_id)

    def _finish(self, job_id: str, worker: str, status: JobStatus, ending: Mapping[str, Any]) -> Job:
        with self._database.writing() as connection:
            job = find_job(connection, None, job_id)
            if job.has_ended:
                if job.status != status:
                    raise InvalidStatusError(f"Job {job_id!r} has ended as {job.status}, not as {status}.")
                return job
            claimed_job(connection, job_id, worker)
            count_seconds(connection, job, self._clock())
            end_job(connection, job, status, self._clock(), ending)
            return find_job(connection, None, job_id)
