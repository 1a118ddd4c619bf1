"""Folder layout of the store: locks, staged and discarded folders."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from adapters.errors import InvalidReferenceError
from adapters.reference import Target, is_adapter_name
from adapters.store.durable import disk_errors, file_lock, sync_folder
from adapters.store.manifest import MANIFEST_FILE

_LOCK_FILE = ".lock"
_STAGING = ".staging"
_FETCH_LOCK_SUFFIX = ".fetch"
_DISCARDED = ".discarded-"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class StoreFolders:
    """The folders of a store; writes within `locked` or `staged` raise an error that names the disk if it is full."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / _STAGING

    def adapter(self, name: str) -> Path:
        """The folder of an adapter, whether or not it exists.

        Raises:
            InvalidReferenceError: `name` is not a valid adapter name.
        """
        if not is_adapter_name(name):
            raise InvalidReferenceError(
                f"{name[:80]!r} is not a valid adapter name. Use up to 63 lower-case letters, digits and dashes."
            )
        return self.root / name

    def names(self) -> list[str]:
        """Adapters that have a folder, sorted."""
        names = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
        return sorted(name for name in names if is_adapter_name(name))

    @contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """Hold an adapter's lock; yields its folder.

        Raises:
            InvalidReferenceError: `name` is not a valid adapter name.
            StoreDiskError: A write within the block failed because the disk is full.
        """
        folder = self.adapter(name)
        is_new = not folder.exists()
        with disk_errors(self.root), file_lock(folder / _LOCK_FILE):
            if is_new:
                sync_folder(self.root)
            yield folder

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A temporary folder on the store's disk, deleted afterwards unless it was renamed into place.

        Raises:
            StoreDiskError: A write within the block failed because the disk is full.
        """
        staged = self._staging / uuid4().hex
        # Shared: `clear_staging` waits for everybody who stages.
        with disk_errors(self.root), file_lock(self._staging / _LOCK_FILE, shared=True):
            try:
                staged.mkdir()
                yield staged
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    @contextmanager
    def staged_alone(self, target: Target) -> Iterator[Path]:
        """`staged`, but one at a time per version, over all threads and processes."""
        lock = self._staging / f"{target.name}-{target.version}{_FETCH_LOCK_SUFFIX}"
        with self.staged() as staged, file_lock(lock):
            yield staged

    def clear_staging(self) -> int:
        """Remove folders of killed publishers; returns their number. Waits for running publishers."""
        if not self._staging.is_dir():
            return 0
        with file_lock(self._staging / _LOCK_FILE):
            leftovers = [path for path in self._staging.iterdir() if path.is_dir()]
            for path in leftovers:
                shutil.rmtree(path)
            for lock in self._staging.glob(f"*{_FETCH_LOCK_SUFFIX}"):
                lock.unlink()
        return len(leftovers)


def version_folders(folder: Path) -> dict[int, Path]:
    """Subfolders of an adapter that are named by a version number, complete or not."""
    paths = folder.iterdir() if folder.is_dir() else []
    return {int(path.name): path for path in paths if _VERSION.fullmatch(path.name)}


def is_complete(version_folder: Path) -> bool:
    return (version_folder / MANIFEST_FILE).is_file()


def discard_version(folder: Path, version: int) -> None:
    """Delete a version's folder: it disappears for readers at once, its files are deleted afterwards.

    The caller holds the adapter's lock.
    """
    discarded = folder / f"{_DISCARDED}{version}"
    _delete(discarded)
    (folder / str(version)).rename(discarded)
    sync_folder(folder)
    _delete(discarded)


def clear_discarded(folder: Path) -> None:
    """Delete leftovers of killed `discard_version` calls. The caller holds the adapter's lock."""
    for path in list(folder.glob(f"{_DISCARDED}*")):
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
