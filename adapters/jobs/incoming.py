"""Files while they arrive: written to disk piece by piece, under a temporary name."""

import hashlib
import os
from collections.abc import Callable
from typing import Self

from adapters.jobs import rows
from adapters.jobs.blobs import BlobFolder, disk_errors
from adapters.jobs.quotas import Allowance
from adapters.jobs.records import FileStatus, Purpose, StoredFile, UploadPart


class IncomingBytes:
    """Content that arrives; it is on disk under a temporary name until it is finished.

    When the process dies before, the next `FileStore.sweep` removes it.
    """

    def __init__(self, blobs: BlobFolder, allowance: Allowance) -> None:
        self._blobs = blobs
        self._allowance = allowance
        self.path, self._file = blobs.create()
        """Readable until the end, e.g. to validate the content; call `flush` first."""
        self.num_bytes = 0
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append a chunk. On an error the content is discarded.

        Raises:
            FileTooLargeError: More bytes than a file may have.
            QuotaExceededError: More bytes than the tenant has left.
            JobsDiskError: The disk is full.
        """
        try:
            self._allowance.take(len(chunk))
            with disk_errors(self.path.parent):
                self._file.write(chunk)
        except BaseException:
            self.discard()
            raise
        self._sha256.update(chunk)
        self.num_bytes += len(chunk)

    def flush(self) -> None:
        """Raises JobsDiskError; the content is discarded then."""
        try:
            with disk_errors(self.path.parent):
                self._file.flush()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove it; does nothing after it was finished or discarded."""
        if self._file.closed:
            return
        self.path.unlink(missing_ok=True)
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def _settle(self, keep: Callable[[], None]) -> None:
        """Make the content durable, then let `keep` rename it and write its row."""
        self.flush()
        try:
            with disk_errors(self.path.parent):
                os.fsync(self._file.fileno())
            keep()
        except BaseException:
            self.discard()
            raise
        self._end()

    def _end(self) -> None:
        try:
            self._file.close()
        except OSError:  # what was still to be written is not wanted any more
            pass
        finally:
            self._allowance.close()


class IncomingFile(IncomingBytes):
    """A file that arrives. Ends by `finish` or `discard`.

    Args:
        keep: Renames the content, and writes the file's row.
    """

    def __init__(
        self,
        blobs: BlobFolder,
        allowance: Allowance,
        keep: Callable[["IncomingFile", FileStatus, str | None], StoredFile],
    ) -> None:
        super().__init__(blobs, allowance)
        self._keep = keep
        self.purpose: Purpose | None = None
        """Instead of that of `begin`, and so `expires_after_s`: a form may tell them after the content."""
        self.expires_after_s: int | None = None

    def finish(self, status: FileStatus = "processed", status_details: str | None = None) -> StoredFile:
        """Make the file durable and visible.

        Raises:
            QuotaExceededError: Other uploads of the tenant have taken the space meanwhile; the file is discarded.
            InvalidStatusError: The upload that it is joined from has ended meanwhile; the file is discarded.
            JobsDiskError: The disk is full; the file is discarded.
        """
        kept: list[StoredFile] = []
        self._settle(lambda: kept.append(self._keep(self, status, rows.cleaned(status_details))))
        return kept[0]


class IncomingPart(IncomingBytes):
    """A part of an upload that arrives. Ends by `finish` or `discard`."""

    def __init__(self, blobs: BlobFolder, allowance: Allowance, keep: Callable[["IncomingPart"], UploadPart]) -> None:
        super().__init__(blobs, allowance)
        self._keep = keep

    def finish(self) -> UploadPart:
        """Make the part durable and visible.

        Raises:
            InvalidStatusError: The upload has ended meanwhile; the part is discarded.
            InvalidUploadError: The parts are too many or too large together; the part is discarded.
            JobsDiskError: The disk is full; the part is discarded.
        """
        kept: list[UploadPart] = []
        self._settle(lambda: kept.append(self._keep(self)))
        return kept[0]
