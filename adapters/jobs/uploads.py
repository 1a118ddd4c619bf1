"""Large files in parts, as OpenAI's uploads."""

import hashlib
import sqlite3
from collections.abc import Sequence

from adapters.jobs.errors import FileTooLargeError, InvalidStatusError, InvalidUploadError, UnknownIdError
from adapters.jobs.files import FileStore
from adapters.jobs.incoming import IncomingFile, IncomingPart
from adapters.jobs.quotas import Allowance
from adapters.jobs.records import FileStatus, Purpose, StoredFile, Upload, UploadPart, new_id
from adapters.jobs.rows import find, insert, shown, update

UPLOAD_EXPIRY_S = 3600
MAX_PART_BYTES = 64 << 20
MAX_PARTS = 1000
_COPY_BYTES = 1 << 20


class UploadStore:
    """Uploads of a `FileStore`: parts survive a restart, and count for the tenant until the upload ends."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._database = files.database
        self._blobs = files.blobs

    def create(
        self,
        owner: str,
        purpose: Purpose,
        filename: str,
        num_bytes: int,
        mime_type: str = "",
        *,
        file_expires_after_s: int | None = None,
    ) -> Upload:
        """Start an upload; its bytes count for the tenant from now on.

        Raises:
            FileTooLargeError: `num_bytes` is more than a file may have.
            QuotaExceededError: `num_bytes` is more than the tenant has left.
        """
        most = self._files.limits.max_file_bytes
        if most is not None and num_bytes > most:
            raise FileTooLargeError(f"`bytes` must be at most {most}. Got {num_bytes}.", param="bytes")
        now = int(self._files.clock())
        upload = Upload(
            id=new_id("upload_"),
            owner=owner,
            purpose=purpose,
            filename=filename,
            num_bytes=num_bytes,
            mime_type=mime_type,
            created_at=now,
            expires_at=now + UPLOAD_EXPIRY_S,
            file_expires_after_s=file_expires_after_s,
        )
        with self._database.writing() as connection:
            self._files.check_room(connection, owner, num_bytes)
            return insert(connection, "uploads", upload)

    def get(self, owner: str | None, upload_id: str) -> Upload:
        """Raises UnknownIdError."""
        with self._database.reading() as connection:
            return self._find(connection, owner, upload_id)

    def begin_part(self, owner: str, upload_id: str, *, max_part_bytes: int = MAX_PART_BYTES) -> IncomingPart:
        """Start a part; parts may arrive at the same time, in any order.

        Raises:
            UnknownIdError: No such upload.
            InvalidStatusError: It is not pending.
        """
        upload = _pending(self.get(owner, upload_id))
        # The whole upload counts for the tenant already.
        allowance = Allowance(owner, None, min(max_part_bytes, upload.num_bytes))
        return IncomingPart(self._blobs, allowance, lambda incoming: self._keep_part(incoming, upload))

    def complete(self, owner: str, upload_id: str, part_ids: Sequence[str], md5: str | None = None) -> IncomingFile:
        """Join the parts, in this order; `finish` of the result ends the upload, `discard` leaves it pending.

        Raises:
            UnknownIdError: No such upload.
            InvalidStatusError: It is not pending.
            InvalidUploadError: A part is not of this upload or is named twice, or size or checksum differ.
            JobsDiskError: The disk is full; the upload stays pending.
        """
        upload = _pending(self.get(owner, upload_id))
        self._check_parts(upload, part_ids)
        joined = IncomingFile(
            self._blobs,
            Allowance(owner, None, upload.num_bytes),
            lambda incoming, status, details: self._keep_file(incoming, upload, status, details),
        )
        try:
            found = self._join(joined, part_ids)
            if md5 is not None and found != md5.lower():
                raise InvalidUploadError(f"The parts have the MD5 {found}, not {shown(md5)!r}.", param="md5")
        except BaseException:
            joined.discard()
            raise
        return joined

    def cancel(self, owner: str, upload_id: str) -> Upload:
        """Cancel a pending upload, and delete its parts.

        Raises:
            UnknownIdError: No such upload.
            InvalidStatusError: It is not pending.
        """
        with self._database.writing() as connection:
            _pending(self._find(connection, owner, upload_id))
            update(connection, "uploads", upload_id, status="cancelled")
        self._delete_parts(upload_id)
        return self.get(owner, upload_id)

    def finished_file(self, upload: Upload) -> StoredFile | None:
        """The file that came of it; None: none yet, or deleted."""
        try:
            return self._files.get(upload.owner, upload.file_id) if upload.file_id else None
        except UnknownIdError:
            return None

    def _find(self, connection: sqlite3.Connection, owner: str | None, upload_id: str) -> Upload:
        found = find(connection, Upload, "uploads", {"id = ?": upload_id, "owner = ?": owner})
        if not found:
            raise UnknownIdError(f"No such Upload object: {shown(upload_id)}", param="upload_id")
        upload = found[0]
        is_over = upload.status == "pending" and upload.expires_at <= self._files.clock()
        return upload.model_copy(update={"status": "expired"}) if is_over else upload

    def _parts(self, connection: sqlite3.Connection, upload_id: str) -> dict[str, UploadPart]:
        return {part.id: part for part in find(connection, UploadPart, "parts", {"upload_id = ?": upload_id})}

    def _keep_part(self, incoming: IncomingPart, upload: Upload) -> UploadPart:
        part = UploadPart(
            id=new_id("part_"),
            upload_id=upload.id,
            num_bytes=incoming.num_bytes,
            created_at=int(self._files.clock()),
        )
        path = self._blobs.parts / part.id
        with self._blobs.locked():
            self._blobs.keep(incoming.path, path)
            try:
                with self._database.writing() as connection:
                    _pending(self._find(connection, upload.owner, upload.id))
                    _check_total(upload, (*self._parts(connection, upload.id).values(), part))
                    insert(connection, "parts", part)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return part

    def _check_parts(self, upload: Upload, part_ids: Sequence[str]) -> None:
        with self._database.reading() as connection:
            parts = self._parts(connection, upload.id)
        if unknown := [part_id for part_id in part_ids if part_id not in parts]:
            raise InvalidUploadError(f"{shown(unknown[0])!r} is not a part of {upload.id!r}.", param="part_ids")
        if len(set(part_ids)) < len(part_ids):
            raise InvalidUploadError("`part_ids` names a part twice.", param="part_ids")
        num_bytes = sum(parts[part_id].num_bytes for part_id in part_ids)
        if num_bytes != upload.num_bytes:
            raise InvalidUploadError(
                f"The parts have {num_bytes} bytes together; the upload was created with {upload.num_bytes}.",
                param="part_ids",
            )

    def _join(self, joined: IncomingFile, part_ids: Sequence[str]) -> str:
        """Returns the MD5."""
        md5 = hashlib.md5(usedforsecurity=False)
        for part_id in part_ids:
            try:
                file = (self._blobs.parts / part_id).open("rb")
            except FileNotFoundError as error:
                raise InvalidStatusError(f"The upload of {part_id!r} has ended.") from error
            with file:
                while chunk := file.read(_COPY_BYTES):
                    md5.update(chunk)
                    joined.write(chunk)
        return md5.hexdigest()

    def _keep_file(
        self, incoming: IncomingFile, upload: Upload, status: FileStatus, status_details: str | None
    ) -> StoredFile:
        life_s = upload.file_expires_after_s or self._files.limits.file_expiry_s
        described = self._files.described(incoming, upload.owner, upload.purpose, upload.filename, life_s)
        file = described.model_copy(update={"status": status, "status_details": status_details})

        def end(connection: sqlite3.Connection, file: StoredFile) -> None:
            _pending(self._find(connection, upload.owner, upload.id))
            update(connection, "uploads", upload.id, status="completed", file_id=file.id)

        self._files.keep(incoming, file, end)
        self._delete_parts(upload.id)
        return file

    def _delete_parts(self, upload_id: str) -> None:
        """Of an upload that has ended; after a crash before this, the next sweep does it."""
        with self._database.writing() as connection:
            parts = self._parts(connection, upload_id)
            connection.execute("DELETE FROM parts WHERE upload_id = ?", (upload_id,))
        for part_id in parts:
            (self._blobs.parts / part_id).unlink(missing_ok=True)


def _pending(upload: Upload) -> Upload:
    if upload.status != "pending":
        raise InvalidStatusError(f"Upload {upload.id!r} is {upload.status}, not pending.", param="upload_id")
    return upload


def _check_total(upload: Upload, parts: Sequence[UploadPart]) -> None:
    """A client sends a part again whose answer it did not get: twice the announced bytes must do."""
    if len(parts) > MAX_PARTS:
        raise InvalidUploadError(f"An upload must have at most {MAX_PARTS} parts. Send larger ones.", param="data")
    num_bytes = sum(part.num_bytes for part in parts)
    if num_bytes > 2 * upload.num_bytes:
        raise InvalidUploadError(
            f"With this part the upload has {num_bytes} bytes; it was created with {upload.num_bytes}.", param="data"
        )
