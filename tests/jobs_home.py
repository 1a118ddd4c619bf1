"""A folder of files, jobs and batches, and records to fill it with."""

from pathlib import Path
from typing import Any

from adapters.jobs.batches import BatchQueue
from adapters.jobs.database import JobsDatabase
from adapters.jobs.files import FileStore
from adapters.jobs.models import ModelNames
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Batch, FileLimits, Job, Purpose, StoredFile, new_id
from adapters.jobs.uploads import UploadStore
from tests.clock import FakeClock

NOW_S = 1_800_000_000.0
MODEL = "ft:smollm2-135m:acme:support:1a2b"


class JobsHome:
    """All parts on one folder, as one process has them; a second one on the same folder is another process."""

    def __init__(self, folder: Path, limits: FileLimits | None = None, clock: FakeClock | None = None) -> None:
        self.folder = folder
        self.clock = clock or FakeClock(NOW_S)
        self.database = JobsDatabase(folder / "jobs.sqlite3", busy_timeout_s=20)
        self.files = FileStore(self.database, folder, limits, clock=self.clock)
        self.uploads = UploadStore(self.files)
        self.queue = JobQueue(self.database, clock=self.clock)
        self.batches = BatchQueue(self.database, clock=self.clock)
        self.names = ModelNames(self.database)

    def again(self, limits: FileLimits | None = None) -> "JobsHome":
        """As another process sees the folder."""
        return JobsHome(self.folder, limits, self.clock)

    def close(self) -> None:
        self.names.close()
        self.database.close()

    def __enter__(self) -> "JobsHome":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stored(self, content: bytes = b"{}\n", owner: str = "acme", purpose: Purpose = "fine-tune") -> StoredFile:
        with self.files.begin(owner, purpose, "train.jsonl") as incoming:
            incoming.write(content)
            return incoming.finish()

    def submitted(self, owner: str = "acme", file: StoredFile | None = None, **changes: Any) -> Job:
        """A job that waits for a worker."""
        file = file or self.stored(owner=owner)
        job = a_job(owner, file.id, self.clock()).model_copy(update={"status": "queued"} | changes)
        return self.queue.submit(job)

    def running(self, worker: str = "w1", owner: str = "acme") -> Job:
        self.submitted(owner)
        job = self.queue.claim(worker)
        assert job is not None
        return job

    def batch(self, owner: str = "acme", file: StoredFile | None = None, **changes: Any) -> Batch:
        file = file or self.stored(owner=owner, purpose="batch")
        return self.batches.submit(
            Batch(
                id=new_id("batch_"),
                owner=owner,
                endpoint="/v1/chat/completions",
                input_file_id=file.id,
                completion_window="24h",
                created_at=int(self.clock()),
                **changes,
            )
        )

    def messages(self, job: Job) -> list[str]:
        """Of all events of a job, oldest first."""
        return [event.message for event in self.queue.events_since(None, job.id, 0, 10_000)]

    def content(self, folder: str = "files") -> list[str]:
        """Names of what is on disk."""
        return sorted(path.name for path in (self.folder / folder).iterdir())


def a_job(owner: str, training_file: str, now: float) -> Job:
    return Job(
        id=new_id("ftjob-"),
        owner=owner,
        model="smollm2-135m",
        base="smollm2-135m-nf4",
        adapter=f"{owner}-support",
        suffix="support",
        training_file=training_file,
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        created_at=int(now),
    )
