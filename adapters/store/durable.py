"""Crash-safe file operations: locks, fsynced copies and writes, appended lines."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import StoreDiskError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@contextmanager
def file_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an advisory lock, waiting for it if needed; the kernel releases it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Translate errors of a full disk into one that names the disk.

    Raises:
        StoreDiskError: The disk of `root` is full, over quota or read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        free_bytes = shutil.disk_usage(next(path for path in (root, *root.absolute().parents) if path.exists())).free
        raise StoreDiskError(
            f"Cannot write to the disk of {str(root)!r}: {error.strerror}, {free_bytes} bytes free. "
            "Nothing was changed. Make room, e.g. with `lorikeet adapters gc --keep-last 3`, and try again."
        ) from error


def copy_file(source: Path, target: Path, *, mode: int = 0o444) -> None:
    """Copy a regular file and fsync it; never follows a link.

    Args:
        mode: Permissions of the copy.

    Raises:
        OSError: `source` is a symbolic link (ELOOP), or cannot be read.
    """
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as reader, os.fdopen(new_file(target, mode), "wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
    target.chmod(mode)


def new_file(path: Path, mode: int) -> int:
    """Create a new file with exactly the permissions `mode`, and return its descriptor for writing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def write_file(path: Path, content: bytes) -> None:
    """Write a new read-only file and fsync it."""
    with path.open("xb") as writer:
        writer.write(content)
        writer.flush()
        os.fsync(writer.fileno())
    path.chmod(0o444)


def seal_file(path: Path, *, mode: int = 0o444) -> None:
    """Fsync an existing file and make it read-only."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(mode)


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines durably and atomically; an incomplete last line, left by a crash, is removed first.

    The file is rewritten and renamed into place, because readers or a crash may see part of an append, but not of a
    rename. The caller must hold the lock.
    """
    before = path.read_bytes() if path.exists() else None
    whole = whole_lines(before or b"")
    try:
        replace_file(path, whole + "".join(f"{line}\n" for line in lines).encode())
    except OSError:
        _restore(path, before)
        raise


def whole_lines(content: bytes) -> bytes:
    """The text without an incomplete last line."""
    return content[: content.rfind(b"\n") + 1]


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file atomically and durably: a reader sees either the old or the new content.

    Args:
        mode: Permissions, set before the first byte is written.
    """
    fresh = _fresh(path)
    try:
        fresh.unlink(missing_ok=True)  # what a writer left that was killed
        with os.fdopen(new_file(fresh, mode), "wb") as writer:
            writer.write(content)
            writer.flush()
            os.fsync(writer.fileno())
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def clear_unfinished(path: Path) -> None:
    """Delete temporary files of killed `replace_file` calls. The caller must hold the lock."""
    _fresh(path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, without which a rename may be lost in a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_folder(source: Path, target: Path) -> None:
    """Rename a complete folder into place, durably."""
    sync_folder(source)
    source.rename(target)
    sync_folder(target.parent)


def _restore(path: Path, before: bytes | None) -> None:
    """Restore the old content if only the final fsync, after the rename, failed."""
    after = path.read_bytes() if path.exists() else None
    if after == before:
        return
    if before is None:
        path.unlink()
    else:
        replace_file(path, before)


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
