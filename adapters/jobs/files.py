"""Files of tenants: metadata in the database, content by digest on disk."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from adapters.jobs.blobs import BlobFolder
from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import JobsStoreError, QuotaExceededError, UnknownIdError
from adapters.jobs.incoming import IncomingFile
from adapters.jobs.quotas import Allowance, TenantBytes, num_files, quota_exceeded, stored_bytes
from adapters.jobs.records import FileLimits, FileStatus, Page, Purpose, StoredFile, new_id
from adapters.jobs.rows import MAX_PAGE, Conditions, cleaned, find, find_page, insert, shown

__all__ = ["FileStore", "IncomingFile"]

_TOMBSTONE_S = 86400
"""A deleted file's id can be listed after for this long, so that a script may delete what it pages through."""


class FileStore:
    """Files below `folder`; content that several files have in common is stored once.

    `owner` None means any tenant (the operator). A file of another tenant is an `UnknownIdError`, like one that never
    existed. Deleting a file that an unfinished job or batch uses works: clients lose it at once, and the content stays,
    and counts for its owner, until the job or batch has ended.

    Args:
        folder: `Home.jobs`; it gets `files`, `incoming` and `parts`.
    """

    def __init__(
        self,
        database: JobsDatabase,
        folder: Path,
        limits: FileLimits | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self.limits = limits or FileLimits()
        self.clock = clock
        self.blobs = BlobFolder(folder)
        self._arriving = TenantBytes(self.used_bytes, self.limits.max_bytes_per_tenant)

    def begin(
        self,
        owner: str,
        purpose: Purpose,
        filename: str,
        *,
        expires_after_s: int | None = None,
        is_limited: bool = True,
    ) -> IncomingFile:
        """Start a file.

        Args:
            expires_after_s: None: `file_expiry_s` of the limits.
            is_limited: Whether the limits apply; not for what a job or batch produces, which only counts.

        Raises:
            QuotaExceededError: The tenant has no byte left.
        """
        life_s = self.limits.file_expiry_s if expires_after_s is None else expires_after_s

        def check(connection: sqlite3.Connection, file: StoredFile) -> None:
            self.check_room(connection, owner, file.num_bytes)

        def keep(incoming: IncomingFile, status: FileStatus, status_details: str | None) -> StoredFile:
            told_s = life_s if incoming.expires_after_s is None else incoming.expires_after_s
            file = self.described(incoming, owner, incoming.purpose or purpose, filename, told_s).model_copy(
                update={"status": status, "status_details": status_details}
            )
            self.keep(incoming, file, check if is_limited else None)
            return file

        if not is_limited:
            return IncomingFile(self.blobs, Allowance(owner, None, None), keep)
        return IncomingFile(self.blobs, Allowance(owner, self._arriving, self.limits.max_file_bytes), keep)

    def get(self, owner: str | None, file_id: str, *, param: str | None = "file_id") -> StoredFile:
        """Raises UnknownIdError, with `param`."""
        with self.database.reading() as connection:
            return find_file(connection, owner, file_id, self.clock(), param)

    def list(
        self,
        owner: str | None,
        *,
        purpose: Purpose | None = None,
        after: str | None = None,
        limit: int = MAX_PAGE,
        is_newest_first: bool = True,
    ) -> Page[StoredFile]:
        """At most `MAX_PAGE` files after the one with id `after`, which may have been deleted within the last day.

        Raises:
            UnknownIdError: There was no file `after`.
        """
        with self.database.reading() as connection:
            return find_page(
                connection,
                StoredFile,
                "files",
                {"purpose = ?": purpose} | _present(owner, self.clock()),
                after=after,
                limit=limit,
                is_newest_first=is_newest_first,
                after_conditions={"owner = ?": owner},
            )

    def open(self, owner: str | None, file_id: str) -> BinaryIO:
        """The content; it can be read to its end even if the file is deleted meanwhile.

        Raises:
            UnknownIdError: No such file.
            JobsStoreError: Its content is missing.
        """
        file = self.get(owner, file_id)
        try:
            return (self.blobs.files / file.sha256).open("rb")
        except OSError as error:
            self.get(owner, file_id)  # it may have been deleted in between
            raise JobsStoreError(f"The content of {file_id!r} cannot be read: {error}") from error

    def held_path(self, holder: str, file_id: str) -> Path:
        """Path of the content of a file that an unfinished job or batch uses; read-only, and there until it has ended.

        Args:
            holder: Id of the job or batch.

        Raises:
            UnknownIdError: The job or batch has ended, or does not use that file.
        """
        with self.database.reading() as connection:
            sql = "SELECT sha256 FROM holds WHERE holder = ? AND file_id = ?"
            row = connection.execute(sql, (holder, file_id)).fetchone()
        if row is None:
            raise UnknownIdError(f"{holder!r} does not use {file_id!r}, or has ended.")
        return self.blobs.files / str(row[0])

    def delete(self, owner: str | None, file_id: str) -> None:
        """Works on a full disk, too. Raises UnknownIdError."""
        with self.blobs.locked():
            file = self.database.with_reserve(lambda: self._bury_file(owner, file_id))
            self._drop_unused(file.sha256)

    def used_bytes(self, owner: str) -> int:
        """Of files, of pending uploads, and of deleted files that an unfinished job or batch still uses."""
        with self.database.reading() as connection:
            return stored_bytes(connection, owner)

    def sweep(self) -> int:
        """Delete what has expired and what killed processes left; returns the number of expired files.

        At the start of a server, and about every minute. Harmless beside running uploads, in any process.
        """
        with self.blobs.locked():
            self.blobs.remove_abandoned()
            expired = self.database.with_reserve(self._expire)
            with self.database.reading() as connection:
                used, parts = _column(connection, _USED_CONTENT), _column(connection, _USED_PARTS)
            self.blobs.remove_others(self.blobs.files, used)
            self.blobs.remove_others(self.blobs.parts, parts)
        self.database.restore_reserve()
        return expired

    def described(
        self, incoming: IncomingFile, owner: str, purpose: Purpose, filename: str, life_s: int | None
    ) -> StoredFile:
        """The record of a file that has arrived now."""
        now = int(self.clock())
        return StoredFile(
            id=new_id("file-"),
            owner=owner,
            purpose=purpose,
            filename=cleaned(filename),
            num_bytes=incoming.num_bytes,
            sha256=incoming.sha256,
            created_at=now,
            expires_at=None if life_s is None else now + life_s,
        )

    def keep(
        self,
        incoming: IncomingFile,
        file: StoredFile,
        also: Callable[[sqlite3.Connection, StoredFile], None] | None = None,
    ) -> None:
        """Rename the content, then write the row: a crash in between leaves content that the next sweep removes.

        Args:
            also: Further checks and changes, in the same transaction, before the row is there.
        """
        with self.blobs.locked():
            self.blobs.keep(incoming.path, self.blobs.files / file.sha256)
            try:
                with self.database.writing() as connection:
                    if also is not None:
                        also(connection, file)
                    insert(connection, "files", file)
            except BaseException:
                with suppress(JobsStoreError):  # else the next sweep removes it
                    self._drop_unused(file.sha256)
                raise

    def check_room(self, connection: sqlite3.Connection, owner: str, num_bytes: int) -> None:
        """Raises QuotaExceededError if a tenant may not store one more file of this size."""
        if (found := num_files(connection, owner)) >= self.limits.max_files_per_tenant:
            raise QuotaExceededError(f"You have {found} files, the maximum of a tenant. Delete some first.")
        most = self.limits.max_bytes_per_tenant
        if most is not None and stored_bytes(connection, owner) + num_bytes > most:
            raise quota_exceeded(most)

    def _bury_file(self, owner: str | None, file_id: str) -> StoredFile:
        with self.database.writing() as connection:
            file = find_file(connection, owner, file_id, self.clock(), "file_id")
            _bury(connection, {"id = ?": file_id}, self.clock())
        return file

    def _expire(self) -> int:
        now = self.clock()
        with self.database.writing() as connection:
            _forget(connection, now)
            return _bury(connection, {"expires_at <= ? AND deleted_at IS NULL": now}, now)

    def _drop_unused(self, sha256: str) -> None:
        """Remove content that no file and no job uses. The caller holds the folder's lock."""
        with self.database.reading() as connection:
            is_used = connection.execute(f"SELECT ? IN ({_USED_CONTENT})", (sha256,)).fetchone()[0]
        if not is_used:
            (self.blobs.files / sha256).unlink(missing_ok=True)


def find_file(
    connection: sqlite3.Connection, owner: str | None, file_id: str, now: float, param: str | None
) -> StoredFile:
    """Raises UnknownIdError, with `param`."""
    found = find(connection, StoredFile, "files", {"id = ?": file_id} | _present(owner, now))
    if not found:
        raise UnknownIdError(f"No such File object: {shown(file_id)}", param=param)
    return found[0]


_USED_CONTENT = "SELECT sha256 FROM files WHERE deleted_at IS NULL UNION SELECT sha256 FROM holds"
_USED_PARTS = "SELECT parts.id FROM parts JOIN uploads ON uploads.id = parts.upload_id WHERE status = 'pending'"


def _present(owner: str | None, now: float) -> Conditions:
    return {"owner = ?": owner, "deleted_at IS NULL AND (expires_at IS NULL OR expires_at > ?)": now}


def _bury(connection: sqlite3.Connection, conditions: Conditions, now: float) -> int:
    """Keep the id alone, for pages that go on after it; returns the number of files."""
    where = " AND ".join(f"({sql})" for sql in conditions)
    sql = f"UPDATE files SET deleted_at = ?, filename = '', status_details = NULL WHERE {where}"
    return connection.execute(sql, (int(now), *conditions.values())).rowcount


def _forget(connection: sqlite3.Connection, now: float) -> None:
    """End uploads that have expired, and forget their parts, and what ended or was deleted more than a day ago."""
    connection.execute("UPDATE uploads SET status = 'expired' WHERE status = 'pending' AND expires_at <= ?", (now,))
    connection.execute(f"DELETE FROM parts WHERE id NOT IN ({_USED_PARTS})")
    connection.execute("DELETE FROM uploads WHERE status != 'pending' AND expires_at <= ?", (now - _TOMBSTONE_S,))
    sql = "DELETE FROM files WHERE deleted_at <= ? AND id NOT IN (SELECT file_id FROM holds)"
    connection.execute(sql, (now - _TOMBSTONE_S,))


def _column(connection: sqlite3.Connection, sql: str) -> set[str]:
    return {str(row[0]) for row in connection.execute(sql)}
