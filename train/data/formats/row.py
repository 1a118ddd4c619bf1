"""One row while a layout reads it: typed access to its columns, which remembers the ones that were asked for."""

import json
from dataclasses import dataclass, field
from typing import Any

from config.dataset import Origin
from train.data.files.records import shown
from train.data.files.strict_json import JsonError, parse_json

_TRUE = frozenset({"true", "yes", "y", "1", "t"})
_FALSE = frozenset({"false", "no", "n", "0", "f"})


class RowError(Exception):
    """A column whose value is not what the layout wants."""

    def __init__(self, field: str, found: str, wanted: str) -> None:
        super().__init__(field, found, wanted)
        self.field = field
        self.found = found
        self.wanted = wanted


class NoAnswerError(Exception):
    """A conversation that ends before an answer."""


@dataclass(slots=True)
class SourceRow:
    """Columns of one row, by the layout's names. null is the same as no column: Parquet has each column in each row.

    Attributes:
        columns: Names and values, after `data.columns` was applied.
        fields: The row as the file has it, without lists and objects: splits group and order by them.
        used: Names that were asked for; one set for all rows of a file. Keys of turns are in it, too.
        refusal: The domain's answer to rows that are out of scope.
        names: The file's name of a column, where `data.columns` maps it.
    """

    columns: dict[str, Any]
    fields: dict[str, Any]
    origin: Origin
    used: set[str]
    seen: set[str]
    refusal: str | None = None
    names: dict[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """A column's value; None if there is none."""
        self.used.add(name)
        return self.columns.get(name)

    def text(self, name: str) -> str:
        """Text that is not blank."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(name, value, "text")
        return value

    def optional_text(self, name: str) -> str:
        """Text; "" if there is none, or only white space."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.fault(name, value, "text")
        return value if value and value.strip() else ""

    def answer(self, name: str) -> str:
        """Text that is not blank; another JSON value as its JSON. Out of scope, the refusal by default."""
        value = self.get(name)
        if value is None and self.refusal is not None and not self.flag("in_scope", default=True):
            return self.refusal
        text = value if isinstance(value, str) else self._json(name, value)
        if not text.strip():
            raise self.fault(name, value, "text or a JSON value")
        return text

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        """True or false, also as the text of a spreadsheet."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        text = str(value).strip().lower()
        if isinstance(value, str | bool) or value in (0, 1):
            if text in _TRUE or value == 1:
                return True
            if text in _FALSE or value == 0:
                return False
        raise self.fault(name, value, "true or false")

    def items(self, name: str, wanted: str) -> list[Any]:
        """A list, or the JSON text of one (as CSV and some hubs' files have it)."""
        value = self.get(name)
        if isinstance(value, str) and value.lstrip()[:1] == "[":
            value = self.parsed(name, value)
        if not isinstance(value, list):
            raise self.fault(name, value, wanted)
        return value

    def parsed(self, name: str, text: str) -> Any:
        """The value of a JSON text inside a column."""
        try:
            return parse_json(text.encode())
        except JsonError as fault:
            inner = f"{name}{'' if fault.field[:1] in ('', '[') else '.'}{fault.field}"
            raise RowError(self._named(inner), fault.found, fault.wanted) from None

    def fault(self, name: str, value: Any, wanted: str) -> RowError:
        return self.wrong(name, shown(value), wanted)

    def wrong(self, name: str, found: str, wanted: str) -> RowError:
        """As `fault`, with what was found in words."""
        return RowError(self._named(name), found, wanted)

    def _named(self, path: str) -> str:
        """A path as the file has it."""
        for name, column in self.names.items():
            if path == name or path.startswith((f"{name}.", f"{name}[")):
                return column + path[len(name) :]
        return path

    def _json(self, name: str, value: Any) -> str:
        if value is None:
            return ""
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):
            raise self.fault(name, value, "text or a JSON value") from None
