"""Dependencies of the routes of files and jobs: stores, threads for disk access, and the audit log."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from adapters.jobs.batches import BatchQueue
from adapters.jobs.database import JobsDatabase
from adapters.jobs.files import FileStore
from adapters.jobs.models import ModelNames
from adapters.jobs.pruning import prune
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import FileLimits
from adapters.jobs.uploads import UploadStore
from config.jobs import JobsConfig
from serve.access.keys import KeyRecord
from serve.jobs.errors import errors_as_responses
from serve.observe.audit import Action, AuditLog

DATABASE_FILE = "jobs.sqlite3"
AUDIT_FILE = "audit.jsonl"

_NUM_THREADS = 4
_SWEEP_EVERY_S = 60.0
_DAY_S = 86400.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class JobServices:
    """The stores of one server. Call anything that blocks on the disk through `run`, which uses separate threads.

    Attributes:
        draining: Set once the server stops taking requests.
    """

    config: JobsConfig
    database: JobsDatabase
    files: FileStore
    uploads: UploadStore
    queue: JobQueue
    batches: BatchQueue
    names: ModelNames
    audit: AuditLog
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_NUM_THREADS, "jobs"))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a blocking function in a thread; errors of the stores become errors for clients."""

        def call() -> T:
            with errors_as_responses():
                return work(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    async def record(self, action: Action, subject: str, key: KeyRecord) -> None:
        """Write a change to the audit log."""
        await self.run(self.audit.record, action, subject, tenant=key.tenant, key_id=key.id)

    async def sweep(self) -> None:
        """Delete old results, expired files and leftovers of killed processes, until cancelled."""
        while True:
            await self.run(self._sweep)
            await asyncio.sleep(_SWEEP_EVERY_S)

    def _sweep(self) -> None:
        if self.config.keep_days is not None:
            prune(self.database, self.config.keep_days * _DAY_S, time.time())
        self.files.sweep()


def open_services(folder: Path, config: JobsConfig) -> JobServices:
    """Open the stores in `Home.jobs`; creates the folder if needed.

    Raises:
        JobsError: The database cannot be opened.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = JobsDatabase(folder / DATABASE_FILE)
    limits = FileLimits(
        max_file_bytes=config.max_file_bytes,
        max_bytes_per_tenant=config.max_bytes_per_tenant,
        file_expiry_s=config.file_expiry_s,
    )
    files = FileStore(database, folder, limits)
    return JobServices(
        config=config,
        database=database,
        files=files,
        uploads=UploadStore(files),
        queue=JobQueue(database),
        batches=BatchQueue(database),
        names=ModelNames(database),
        audit=AuditLog(folder / AUDIT_FILE),
    )
