"""Files readable only by their owner, whatever the umask: samples, held-out examples and keys."""

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from config.home import Home

logger = logging.getLogger(__name__)

_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MAX_NAMED = 3


def make_private_folder(folder: Path) -> None:
    """Create a folder and missing parents; access by others to an existing one is removed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    close_to_others([folder])


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, with these permissions before the first byte."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)  # where it was there before
        file.write(text)


def close_to_others(paths: Iterable[Path]) -> None:
    """Remove group and other permissions; logs a warning for changed files and for those that cannot be changed."""
    closed, left = [], []
    for path in filter(is_open_to_others, paths):
        try:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OF_OTHERS)
        except OSError:  # another user's, or on a disk that is read-only
            left.append(path)
        else:
            closed.append(path)
    if closed:
        logger.warning("Removed other users' access to private files: %s", _named(closed))
    if left:
        logger.warning("Other users can read private files: %s. Remove their access: `chmod go= FILE`.", _named(left))


def is_open_to_others(path: Path) -> bool:
    """Whether group or others have any permission on a file or folder; False for links and missing paths."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return bool(found.st_mode & _OF_OTHERS) and not stat.S_ISLNK(found.st_mode)


_VERSION_FILES = ("held_out.json", "fingerprint.json", "evaluation.jsonl")


def private_paths(home: Home) -> Iterator[Path]:
    """All private paths of a state folder, existing or not."""
    quality = (home.quality.with_name(home.quality.name + end) for end in ("", "-wal", "-shm"))
    data = (
        home.datasets,
        *home.datasets.rglob("*"),
        home.runs,
        home.data_reports,
        home.synthetic,
        *home.synthetic.rglob("*"),
    )
    versions = (home.adapters.glob(f"*/*/{name}") for name in _VERSION_FILES)
    return chain((home.keys, home.quality_key, home.jobs), quality, data, *versions)


def _named(paths: list[Path]) -> str:
    more = len(paths) - _MAX_NAMED
    return ", ".join(map(str, paths[:_MAX_NAMED])) + (f" and {more} more" if more > 0 else "")
