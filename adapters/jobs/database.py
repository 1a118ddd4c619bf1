"""The SQLite file of files, jobs and batches. Servers, workers and commands of one machine share it."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from adapters.jobs.errors import JobsDiskError, JobsError, JobsStoreError
from adapters.jobs.schema import connect
from config.sqlite_file import transaction

_RESERVE_BYTES = 1 << 20
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
"""A file system over its quota reports an error of writing, not a full disk."""

ResultT = TypeVar("ResultT")


class JobsDatabase:
    """A connection to the file, safe to share between threads; a child process opens its own.

    What a method has written survives SIGKILL and a power failure. Any method may wait for the disk and for another
    process's write, so an event loop must call it in a thread. Processes share memory through the file (WAL): it must
    lie on a local disk.

    Raises:
        JobsStoreError: The file is not ours, a newer program wrote it, or it cannot be opened, read or written.
        JobsDiskError: The disk is full.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = 10.0) -> None:
        self.path = path
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._reserve = path.with_name(f"{path.name}.reserve")
        self._connection = self.connect()
        self.restore_reserve()

    def connect(self) -> sqlite3.Connection:
        """Another connection to the file, which the caller closes."""
        with self.translated():
            return connect(self.path, self._busy_timeout_s)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        assert self._process == os.getpid(), "a child process must open its own JobsDatabase"
        with self._lock, self.translated():
            yield self._connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; within another one, a part of it."""
        with self.reading() as connection, transaction(connection):
            yield connection

    def with_reserve(self, act: Callable[[], ResultT]) -> ResultT:
        """Run `act`; on a full disk give up the reserved space and run it again.

        For the few bytes that must be written then: that a job has failed, and why.
        """
        try:
            return act()
        except JobsDiskError:
            self._reserve.unlink(missing_ok=True)
            return act()

    def restore_reserve(self) -> None:
        """Reserve the space that `with_reserve` gives up, unless the disk is still full."""
        try:
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError:  # a full disk: the next call tries again
            self._reserve.unlink(missing_ok=True)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except JobsError:
            raise
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) in _NO_ROOM:
                raise JobsDiskError(
                    f"The jobs database {str(self.path)!r} cannot be written: the disk is full. Nothing was changed. "
                    "Make room, e.g. delete files or adapters, and try again."
                ) from error
            raise JobsStoreError(f"The jobs database {str(self.path)!r} fails: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "JobsDatabase":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
