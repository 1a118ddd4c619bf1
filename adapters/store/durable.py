"""File operations that survive a crash: locks, fsynced copies and writes, appended lines."""

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
    """Hold an advisory lock, waiting for it; the kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn what a full disk raises inside into an error that names the disk.

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
            f"The disk of {str(root)!r} takes no more: {error.strerror}, {free_bytes} bytes free. "
            "Nothing was changed. Make room, e.g. with `lorikeet adapters gc --keep-last 3`, and try again."
        ) from error


def copy_file(source: Path, target: Path, *, mode: int = 0o444) -> None:
    """Copy a regular file's bytes and fsync them; never follows a link.

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
    """A descriptor to write a new file by, which from its first byte on nobody has more rights to than `mode`."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def write_file(path: Path, content: bytes) -> None:
    """Write a new read-only file and fsync it."""
    with path.open("xb") as writer:
        writer.write(content)
        writer.flush()
        os.fsync(writer.fileno())
    path.chmod(0o444)


def seal_file(path: Path, *, mode: int = 0o444) -> None:
    """Fsync a file that something else wrote, and make it read-only."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(mode)


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines durably, all of them or none; a torn last line, left by a crash, is cut off first.

    The file is written again and renamed into place: an append of several lines can be read half, or be cut
    in the middle by a crash, a rename cannot. The caller keeps other writers away.
    """
    before = path.read_bytes() if path.exists() else None
    whole = whole_lines(before or b"")
    try:
        replace_file(path, whole + "".join(f"{line}\n" for line in lines).encode())
    except OSError:
        _restore(path, before)
        raise


def whole_lines(content: bytes) -> bytes:
    """Without a torn last line."""
    return content[: content.rfind(b"\n") + 1]


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file whole or not at all, durably: a reader sees the old bytes or the new ones.

    Args:
        mode: Permissions, from its first byte on.
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
    """Delete what `replace_file` left beside a file when it was killed. The caller keeps other writers away."""
    _fresh(path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: without it a rename may be lost in a power cut."""
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
    """Put the old bytes back where only the last fsync, after the rename, has failed."""
    after = path.read_bytes() if path.exists() else None
    if after == before:
        return
    if before is None:
        path.unlink()
    else:
        replace_file(path, before)


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
