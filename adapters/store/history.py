"""An adapter's history: `history.jsonl`, one event per line. Aliases, traffic split and pins derive from it."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from adapters.errors import IntegrityError
from adapters.store.durable import append_lines
from adapters.store.record import Record

HISTORY_FILE = "history.jsonl"

EventKind = Literal["published", "promoted", "rolled_back", "removed", "split", "pinned", "unpinned", "judged"]
VerdictAction = Literal["promote", "hold", "rollback"]


class Event(Record):
    """One event; `previous` is the alias's earlier version."""

    kind: EventKind
    at: str = Field(description="UTC, ISO 8601.")
    version: int | None = Field(None, ge=1, description="None for a `split`, which applies to the whole adapter.")
    alias: str | None = None
    previous: int | None = None
    canary_weight: float | None = Field(None, ge=0, le=1, description="Of a `split`: the canary's share.")
    is_shadow: bool | None = Field(None, description="Of a `split`: whether the canary's answers are discarded.")
    reason: str = ""
    action: VerdictAction | None = Field(None, description="Of a `judged` canary: the verdict.")
    figures: dict[str, FiniteFloat] | None = Field(None, description="Figures that the verdict is based on.")

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        is_split = self.kind == "split"
        lacks = (self.version is None) != is_split or (self.canary_weight is None or self.is_shadow is None) == is_split
        if lacks or (self.action is None) == (self.kind == "judged"):
            raise ValueError(f"{self.kind!r} lacks a field, or has one that belongs to another kind of event")
        return self


class FileKey(NamedTuple):
    """Identifies the content of a file."""

    path: Path
    inode: int
    size_bytes: int
    mtime_ns: int


def append_events(folder: Path, events: Sequence[Event]) -> None:
    """Append events to an adapter's history, durably and atomically.

    The caller holds the adapter's lock.
    """
    if events:
        append_lines(folder / HISTORY_FILE, [event.model_dump_json(exclude_none=True) for event in events])


def read_history(folder: Path) -> tuple[Event, ...]:
    """All events of an adapter's folder, oldest first; an incomplete last line is ignored.

    Raises:
        IntegrityError: A line before the last is not a valid event.
    """
    return read_at(history_key(folder))


def history_key(folder: Path) -> FileKey | None:
    """A key that changes with the history; None if there is no history."""
    return file_key(folder / HISTORY_FILE)


def file_key(path: Path) -> FileKey | None:
    """A key that changes when the file is replaced; None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return FileKey(path, status.st_ino, status.st_size, status.st_mtime_ns)


def read_at(key: FileKey | None) -> tuple[Event, ...]:
    """All events of the history with this key.

    Raises:
        IntegrityError: A line before the last is not a valid event.
    """
    return _read(key) if key is not None else ()


def parse_history(content: bytes, subject: str) -> tuple[Event, ...]:
    """Parse a history's bytes; an incomplete last line is ignored.

    Raises:
        IntegrityError: A line before the last is not a valid event; the message names `subject`.
    """
    *lines, _torn = content.decode(errors="replace").split("\n")
    return tuple(_parse(subject, number, line) for number, line in enumerate(lines, 1))


def published_versions(history: Iterable[Event]) -> frozenset[int]:
    """All published versions, including removed ones."""
    return frozenset(event.version for event in history if event.kind == "published" and event.version is not None)


def removed_versions(history: Iterable[Event]) -> frozenset[int]:
    """Removed versions, even if a killed process left their folder."""
    return frozenset(event.version for event in history if event.kind == "removed" and event.version is not None)


@lru_cache(maxsize=2048)
def _read(key: FileKey) -> tuple[Event, ...]:
    return parse_history(key.path.read_bytes(), f"{key.path.parent.name}/{key.path.name}")


def _parse(subject: str, number: int, line: str) -> Event:
    try:
        return Event.model_validate_json(line)
    except ValidationError as error:
        raise IntegrityError(
            f"Line {number} of {subject} is not a valid event: {line[:80]!r}. "
            "Restore the file from a backup, or delete that line."
        ) from error
