"""Stamp of a folder's files, to detect any change since an earlier check."""

import os
from pathlib import Path

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and ctime of every file."""


def stamp_of(folder: Path) -> Stamp:
    """Metadata that the kernel updates with content, name, mode or links; programs cannot set the ctime.

    Raises:
        FileNotFoundError: The folder or one of its files does not exist.
    """
    files = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        found = entry.stat(follow_symlinks=False)
        files.append((entry.name, found.st_ino, found.st_size, found.st_ctime_ns))
    return tuple(files)
