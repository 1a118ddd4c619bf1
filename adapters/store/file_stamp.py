"""Whether the files of a folder are the very ones that were looked at before."""

import os
from pathlib import Path

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, inode, bytes and time of the last change of every file."""


def stamp_of(folder: Path) -> Stamp:
    """Of each file what the kernel changes with its content, name, mode or links; nobody can set the time of that.

    Raises:
        FileNotFoundError: The folder or a file of it is gone.
    """
    files = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        found = entry.stat(follow_symlinks=False)
        files.append((entry.name, found.st_ino, found.st_size, found.st_ctime_ns))
    return tuple(files)
