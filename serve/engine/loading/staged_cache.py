"""Staged adapters kept on disk: a version is packed once for a base, and a later load only maps a file.

One folder a version and a layout, found by the hash of its manifest and of the layout; the least recently used ones go
where they take too much room. Who takes one gets hard links: it stays whole, whatever happens here meanwhile.
"""

import hashlib
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapters.store.manifest import MANIFEST_FILE


@dataclass(frozen=True)
class StagedCache:
    """Where, and how many bytes at most; several processes may share one folder."""

    root: Path
    most_bytes: int

    layout_sha256: str
    """Of what the versions are packed for."""

    def key_of(self, adapter: Path) -> str | None:
        """The name of a version here; None for a folder that is no version."""
        try:
            manifest = (adapter / MANIFEST_FILE).read_bytes()
        except FileNotFoundError:
            return None
        return hashlib.sha256(manifest + self.layout_sha256.encode()).hexdigest()

    def take(self, key: str, folder: Path) -> bool:
        """Link what is kept into a new folder on the same file system; False where nothing is."""
        kept = self.root / key
        try:
            _link(kept, folder)
            os.utime(kept)
        except OSError:  # it is not there, or goes just now
            shutil.rmtree(folder, ignore_errors=True)
            return False
        return True

    def is_used(self, key: str, folder: Path) -> bool:
        """Count it as used what was taken into this folder before; False where it is kept no longer."""
        try:
            for path in (self.root / key, folder):
                os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def keep(self, key: str, folder: Path) -> None:
        """Keep a staged folder's files, and drop what is too much.

        Raises:
            OSError: They cannot be kept; what was kept before is whole.
        """
        size = _size_bytes(folder)
        if size > self.most_bytes:
            return
        self._make_room(self.most_bytes - size)
        made = folder.with_name(f"{folder.name}.kept")
        try:
            _link(folder, made)
            made.rename(self.root / key)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            if not (self.root / key).exists():  # else another process was first
                raise

    def drop(self, key: str) -> None:
        """Forget one."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    def _make_room(self, most_bytes: int) -> None:
        self._sweep()
        kept = []
        for entry in os.scandir(self.root):
            try:
                if len(entry.name) == _KEY_CHARS:
                    kept.append((entry.stat().st_mtime, Path(entry.path), _size_bytes(Path(entry.path))))
            except FileNotFoundError:  # another process dropped it
                continue
        total = sum(size for _, _, size in kept)
        for _, path, size in sorted(kept):
            if total <= most_bytes:
                return
            shutil.rmtree(path, ignore_errors=True)
            total -= size

    def _sweep(self) -> None:
        """Remove what was taken and not used for long: of a process that was killed, or held for a next load."""
        for path in self.root.glob("*/*/"):
            with suppress(FileNotFoundError):
                if len(path.parent.name) != _KEY_CHARS and path.stat().st_mtime < time.time() - _LONGEST_UNUSED_S:
                    shutil.rmtree(path, ignore_errors=True)


_LONGEST_UNUSED_S = 3600.0  # a load takes seconds
_KEY_CHARS = hashlib.sha256().digest_size * 2


def _link(source: Path, folder: Path) -> None:
    folder.mkdir()
    for entry in os.scandir(source):
        os.link(entry.path, folder / entry.name)


def _size_bytes(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder))
