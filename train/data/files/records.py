"""Rows of a file before a layout reads them, and the faults found in them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from config.dataset import Origin
from train.errors import DataError

MAX_LISTED = 10
"""Faults that are listed; more are counted."""

_MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One row: its columns by name."""

    origin: Origin
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one row. `field` is "" where the row as a whole is meant."""

    origin: Origin
    field: str
    found: str
    wanted: str

    def __str__(self) -> str:
        where = f"{self.origin}: `{self.field}`" if self.field else f"{self.origin}"
        return f"{where}: found {self.found}, wanted {self.wanted}"


Records = Iterator[SourceRecord | Fault]


@dataclass
class Faults:
    """The first faults of all files, and the number of the others."""

    listed: list[Fault] = field(default_factory=list)
    num_more: int = 0

    def add(self, fault: Fault) -> None:
        if len(self.listed) < MAX_LISTED:
            self.listed.append(fault)
        else:
            self.num_more += 1

    def raise_any(self) -> None:
        """Raise `DataError` with one line per fault, if there is one."""
        lines = [str(fault) for fault in self.listed]
        if self.num_more:
            lines.append(f"and {self.num_more:,} more")
        if lines:
            raise DataError("\n".join(lines))


def shown(value: Any) -> str:
    """A value in one short line, as JSON writes it."""
    if value is None:
        return "nothing"
    if isinstance(value, str) and not value.strip():
        return "empty text"
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return shortened(text)


def shortened(text: str) -> str:
    """A text in one line of at most 60 characters; what cannot be printed is escaped."""
    plain = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[: _MAX_SHOWN_CHARS + 1])
    return plain if len(plain) <= _MAX_SHOWN_CHARS else f"{plain[:_MAX_SHOWN_CHARS]}…"
