"""Content on disk: `files` by digest, `parts` of pending uploads, and `incoming` while it is written."""

import errno
import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapters.jobs.errors import JobsDiskError, JobsError, JobsStoreError
from adapters.jobs.records import new_id
from adapters.store.durable import file_lock, new_file, sync_folder

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class BlobFolder:
    """Files by name. Rename and removal happen under one lock, which all processes share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self.files = root / "files"
        self.parts = root / "parts"
        with disk_errors(root):
            for folder in (root, self._incoming, self.files, self.parts):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else adds or removes content."""
        with disk_errors(self._root), file_lock(self._root / ".lock"):
            yield

    def create(self) -> tuple[Path, BinaryIO]:
        """A new file in `incoming`; its lock, which ends with the process, keeps `remove_abandoned` from it."""
        path = self._incoming / new_id("file-")
        with self.locked():
            file = os.fdopen(new_file(path, 0o600), "wb")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path, file

    def keep(self, incoming: Path, target: Path) -> None:
        """Give an incoming file, which was fsynced, its name. The caller holds the lock."""
        incoming.chmod(0o400)
        incoming.rename(target)
        sync_folder(target.parent)

    def remove_abandoned(self) -> None:
        """Remove what killed processes were writing. The caller holds the lock."""
        for path in self._incoming.iterdir():
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                path.unlink()

    def remove_others(self, folder: Path, names: Collection[str]) -> None:
        """Remove the files of `files` or `parts` that have none of these names. The caller holds the lock."""
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into ours."""
    try:
        yield
    except JobsError:
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise JobsDiskError(
                f"Cannot write to {str(folder)!r}: {error.strerror}. Nothing was changed. Make room on its disk, "
                "e.g. delete files or adapters, and try again."
            ) from error
        raise JobsStoreError(f"Cannot use {str(folder)!r}: {error}") from error
