"""Processes that use a version: one locked file per user, unlocked by the kernel when the process dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from adapters.reference import Target
from adapters.store.durable import file_lock

USAGE_FOLDER = ".in-use"


@contextmanager
def in_use(root: Path, target: Target, who: str) -> Iterator[None]:
    """Mark a version as used by this process, which keeps others from removing it.

    Args:
        root: The store's root folder.
        who: Description for operators, e.g. `lorikeet serve on port 8000 (process 4711)`.
    """
    folder = root / target.name / USAGE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target.version}.{uuid4().hex}"
    with file_lock(root / target.name / ".lock"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, who.encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def users(root: Path, target: Target) -> list[str]:
    """Current users of a version; deletes files of dead processes. The caller holds the adapter's lock."""
    folder = root / target.name / USAGE_FOLDER
    paths = sorted(folder.glob(f"{target.version}.*")) if folder.is_dir() else []
    return [who for path in paths if (who := _living_user(path)) is not None]


def _living_user(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return path.read_text(encoding="utf-8", errors="replace")
    else:
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)
