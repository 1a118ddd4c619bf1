"""Rows of JSON Lines, of a JSON list, and of an object that holds one list; each with the line where it begins."""

import json
import re
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any

from config.dataset import Origin
from train.data.files.content import Content
from train.data.files.records import Fault, Records, SourceRecord, shortened, shown
from train.data.files.strict_json import JsonError, parse_json
from train.errors import DataError

ROW_KEYS = frozenset(
    {"messages", "conversations", "conversation", "history", "tools", "functions", "prompt", "completion"}
    | {"chosen", "rejected", "preferred_output", "non_preferred_output", "input", "output"}
)
"""Keys whose lists are turns of one row; a list under another key of the only object is the rows."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def json_records(content: Content) -> Records:
    """Rows of JSON Lines or of one JSON document, whichever the file holds."""
    lines = enumerate(content.lines(), start=1)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return iter(())
    if b"\0" in first[1]:
        raise content.binary(first[0])
    start = first[1].lstrip()[:1]
    if start not in (b"{", b"["):
        raise DataError(
            f"{content.name} line {first[0]}: found {_begin(first[1])!r}, wanted JSON: an object `{{…}}` per line, "
            "or a list of objects `[…]`."
        )
    following = []  # up to the second line that is not blank
    for item in lines:
        following.append(item)
        if item[1].strip():
            break
    rest = chain([first], following, lines)
    has_second = bool(following) and bool(following[-1][1].strip())
    if start == b"{" and has_second and _is_one_per_line(first[1], following[-1][1], content.suffix):
        return _line_records(content, rest)
    return _document_records(content, first[0], b"".join(line for _, line in rest))


def _is_one_per_line(first: bytes, second: bytes, suffix: str) -> bool:
    if second.lstrip()[:1] == b"{" or (suffix != ".json" and first.strip() != b"{"):
        return True
    try:
        parse_json(first)
    except (JsonError, UnicodeDecodeError):
        return False
    return True


def _begin(line: bytes) -> str:
    return shortened(line[:60].decode("utf-8", errors="backslashreplace").strip())


def _line_records(content: Content, lines: Iterator[tuple[int, bytes]]) -> Records:
    for number, line in lines:
        if not line.isspace():
            yield from _parsed_line(content, Origin(file=content.name, line=number), line)


def _parsed_line(content: Content, origin: Origin, line: bytes) -> Iterator[SourceRecord | Fault]:
    """The row of a line; several, where old Mac line ends stand between line feeds."""
    row = _parsed(content, origin, line)
    parts = [part for part in line.split(b"\r") if part.strip()] if isinstance(row, Fault) else []
    if len(parts) > 1:
        yield from (_parsed(content, origin, part) for part in parts)
    else:
        yield row


def _parsed(content: Content, origin: Origin, text: bytes) -> SourceRecord | Fault:
    try:
        value = parse_json(text)
    except JsonError as fault:
        return Fault(origin, fault.field, fault.found, fault.wanted)
    except UnicodeDecodeError as error:
        raise content.wrong_encoding(origin.line, text, error.start) from None
    if not isinstance(value, dict):
        return Fault(origin, "", shown(value), "an object `{…}` with a key per column")
    return SourceRecord(origin, value)


def _document_records(content: Content, first_line: int, document: bytes) -> Records:
    """Rows of one list or object, or of several objects one after the other."""
    try:
        text = document.decode()
    except UnicodeDecodeError as error:
        line = first_line + document.count(b"\n", 0, error.start)
        raise content.wrong_encoding(line, document, error.start) from None
    scan = _Scan(content, text, first_line)
    return scan.rows()


class _Scan:
    """Positions of the values in a JSON text; each row is then parsed strictly."""

    def __init__(self, content: Content, text: str, first_line: int) -> None:
        self._content = content
        self._text = text
        self._line = first_line
        self._counted_to = 0

    def rows(self) -> Records:
        position, num_values = self._skip(0), 0
        while position < len(self._text):
            try:
                if self._text[position] == "[" and num_values == 0:
                    end = yield from self._items(position)
                else:
                    end = self._end_of_value(position)
                    is_only = num_values == 0 and self._skip(end) == len(self._text)
                    rows = self._row_list(position) if is_only else None
                    if rows is None:
                        yield self._row(position, end)
                    else:
                        yield from self._items(rows)
            except JsonError as fault:
                yield Fault(self._origin(position), fault.field, fault.found, fault.wanted)
                return
            position, num_values = self._skip(end), num_values + 1

    def _items(self, position: int) -> Generator[SourceRecord | Fault, None, int]:
        """Rows of the list that begins at a position; returns the position after it."""
        position = self._skip(position + 1)
        while self._at(position) != "]":
            try:
                end = self._end_of_value(position)
            except JsonError as fault:
                yield Fault(self._origin(position), fault.field, fault.found, fault.wanted)
                return len(self._text)
            yield self._row(position, end)
            position = self._skip(end)
            if self._at(position) == ",":
                position = self._skip(position + 1)
            elif self._at(position) != "]":
                found = shortened(self._text[position : position + 20]) or "the end of the file"
                yield Fault(
                    self._origin(min(position, len(self._text) - 1)), "", found, "`,` or `]` after a list's row"
                )
                return len(self._text)
        return position + 1

    def _row_list(self, position: int) -> int | None:
        """Where the list of rows begins in the file's only object; None: the object is itself a row."""
        members = list(self._members(position))
        lists = [(key, start) for key, start, value in members if _is_row_list(value)]
        if any(key in ROW_KEYS for key, _, _ in members) or not lists:
            return None
        if len(lists) > 1:
            names = ", ".join(repr(key) for key, _ in lists)
            raise DataError(
                f"{self._content.name}: its object holds {len(lists)} lists of rows ({names}); wanted one. "
                "Write each to a file of its own."
            )
        return lists[0][1]

    def _members(self, position: int) -> Iterator[tuple[str, int, Any]]:
        position = self._skip(position + 1)
        while self._at(position) == '"':
            key, end = _DECODER.raw_decode(self._text, position)
            start = self._skip(self._skip(end) + 1)
            value, end = _DECODER.raw_decode(self._text, start)
            yield key, start, value
            position = self._skip(self._skip(end) + 1) if self._at(self._skip(end)) == "," else len(self._text)

    def _row(self, position: int, end: int) -> SourceRecord | Fault:
        content = self._text[position:end].encode("utf-8", "surrogatepass")
        return _parsed(self._content, self._origin(position), content)

    def _origin(self, position: int) -> Origin:
        """The line of a position; positions only grow."""
        self._line += self._text.count("\n", self._counted_to, position)
        self._counted_to = max(self._counted_to, position)
        return Origin(file=self._content.name, line=self._line)

    def _end_of_value(self, position: int) -> int:
        try:
            return _DECODER.raw_decode(self._text, position)[1]
        except json.JSONDecodeError as error:
            line = self._text.count("\n", 0, error.pos) - self._text.count("\n", 0, position)
            where = f"{line} lines below, " if line else ""
            raise JsonError(
                f"text that is not JSON ({error.msg}, {where}column {error.colno})", "one JSON value"
            ) from None
        except RecursionError:
            raise JsonError("JSON that is nested too deeply", "values of usual size and nesting") from None
        except ValueError:  # Python's limit for integers
            raise JsonError("a number of thousands of digits", "values of usual size and nesting") from None

    def _skip(self, position: int) -> int:
        match = _SPACE.match(self._text, position)
        return match.end() if match else position

    def _at(self, position: int) -> str:
        return self._text[position : position + 1]


def _is_row_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
