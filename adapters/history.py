"""What happened to an adapter: `history.jsonl`, one appended event a line. Aliases derive from it."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from adapters.durable import append_line
from adapters.errors import IntegrityError
from adapters.manifest import Record

HISTORY_FILE = "history.jsonl"

EventKind = Literal["published", "promoted", "rolled_back", "removed"]


class Event(Record):
    """One thing that happened; `previous` is where the alias pointed before."""

    kind: EventKind
    at: str = Field(description="UTC, ISO 8601.")
    version: int = Field(ge=1)
    alias: str | None = None
    previous: int | None = None
    reason: str = ""


def append_event(folder: Path, event: Event) -> None:
    """Append an event to the history of an adapter's folder, durably. The caller holds the adapter's lock."""
    append_line(folder / HISTORY_FILE, event.model_dump_json(exclude_none=True))


def read_history(folder: Path) -> tuple[Event, ...]:
    """All events of an adapter's folder, oldest first; a torn last line does not count.

    Raises:
        IntegrityError: A line in the middle is no event.
    """
    path = folder / HISTORY_FILE
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return _read(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2048)  # every request resolves a name; a history only grows, so its size tells
def _read(path: Path, inode: int, size: int, mtime_ns: int) -> tuple[Event, ...]:
    *lines, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return tuple(_parse(path, number, line) for number, line in enumerate(lines, 1))


def _parse(path: Path, number: int, line: str) -> Event:
    try:
        return Event.model_validate_json(line)
    except ValidationError as error:
        raise IntegrityError(
            f"Line {number} of {path.parent.name}/{path.name} is no event: {line[:80]!r}. "
            "Restore the file from a backup, or delete that line."
        ) from error
