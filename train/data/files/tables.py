"""Rows of CSV, TSV, Parquet and Arrow files."""

import csv
import io
import math
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from config.dataset import Origin
from train.data.files.content import Content
from train.data.files.records import Fault, Records, SourceRecord
from train.data.files.strict_json import JsonError, refuse_infinite
from train.errors import DataError

_DELIMITERS = (",", ";", "\t", "|")
_EXCEL_HINT = re.compile(r"sep=([^\r\n])\r?\n")
"""A first line that names the delimiter."""
_BATCH_ROWS = 1024
_ARROW_FILE = b"ARROW1"


def csv_records(content: Content) -> Records:
    """Rows of a CSV or TSV file; all cells are text. The delimiter is the one that splits the header best."""
    text = content.text()
    csv.field_size_limit(sys.maxsize)  # its default, 128 KiB, is less than a long document
    # Ends lines at CR, LF and CRLF only, and keeps them inside quoted cells.
    lines = io.StringIO(text, newline="")
    hint = _EXCEL_HINT.match(text)
    num_hints = 1 if hint and lines.readline() else 0
    delimiter = hint[1] if hint else "\t" if content.suffix == ".tsv" else _delimiter(text)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1 + num_hints
    try:
        header: list[str] = []
        for cells in reader:
            origin = Origin(file=content.name, line=line)
            line = reader.line_num + 1 + num_hints
            if not any(map(str.strip, cells)):
                continue
            if not header:
                header = _header(content, cells)
            elif len(cells) != len(header):
                yield Fault(origin, "", f"{len(cells)} cells", f"{len(header)}, as in the header")
            else:
                yield SourceRecord(origin, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{content.name} line {line}: found a row that is not valid CSV ({error}).") from None


def _delimiter(text: str) -> str:
    header = next((line for line in io.StringIO(text) if line.strip()), "")
    num_columns = {}
    for delimiter in _DELIMITERS:
        try:
            num_columns[delimiter] = len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            num_columns[delimiter] = 0
    return max(_DELIMITERS, key=lambda delimiter: num_columns[delimiter])


def _header(content: Content, cells: list[str]) -> list[str]:
    # pandas writes its index as a column without a name.
    names = [cell.strip() or f"(column {number})" for number, cell in enumerate(cells, start=1)]
    _refuse_duplicates(content, names)
    return names


def _refuse_duplicates(content: Content, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{content.name}: column {twice[0]!r} appears {names.count(twice[0])} times; rename one.")


def parquet_records(content: Content) -> Records:
    """Rows of a Parquet file, numbered from 1."""
    stream = content.stream if content.is_seekable else io.BytesIO(content.stream.read())
    file = pyarrow.parquet.ParquetFile(stream)
    return _rows(content, file.schema_arrow, file.iter_batches(batch_size=_BATCH_ROWS))


def arrow_records(content: Content) -> Records:
    """Rows of an Arrow file (Feather) or stream (as `datasets` saves them), numbered from 1."""
    if content.head.startswith(_ARROW_FILE):
        stream = content.stream if content.is_seekable else io.BytesIO(content.stream.read())
        file = pyarrow.ipc.open_file(stream)
        return _rows(content, file.schema, (file.get_batch(index) for index in range(file.num_record_batches)))
    reader = pyarrow.ipc.open_stream(content.stream)
    return _rows(content, reader.schema, iter(reader))


def _rows(content: Content, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Records:
    _refuse_duplicates(content, schema.names)
    to_convert = [field.name for field in schema if not _is_plain(field.type)]
    number = 0
    for batch in batches:
        batch.validate(full=True)
        for fields in _python_rows(content, batch, number):
            number += 1
            origin = Origin(file=content.name, line=number)
            yield _converted(origin, fields, to_convert)


def _python_rows(content: Content, batch: pa.RecordBatch, number: int) -> list[dict[str, Any]]:
    """Rows of a batch that begins after row `number`.

    Raises:
        DataError: A value has no place in Python, as a date of the year 30000, or a map with one key twice.
    """
    try:
        return cast(list[dict[str, Any]], batch.to_pylist(maps_as_pydicts="strict"))
    except (ValueError, OverflowError, KeyError) as error:
        columns = zip(batch.schema.names, batch.columns, strict=True)
        name, index, reason = next(_unreadable(columns), ("", 0, error))
        shown = " ".join(str(reason.args[0] if reason.args else reason).split())
        raise DataError(
            f"{content.name} line {number + index + 1}: `{name}`: found a value that cannot be read ({shown}), wanted "
            "text, a number, a date of the years 1 to 9999, a list or an object."
        ) from None


def _unreadable(columns: Iterable[tuple[str, pa.Array]]) -> Iterator[tuple[str, int, Exception]]:
    """The column, index and error of each value that cannot be read."""
    for name, column in columns:
        for index, value in enumerate(column):
            try:
                value.as_py(maps_as_pydicts="strict")
            except (ValueError, OverflowError, KeyError) as error:
                yield name, index, error


def _converted(origin: Origin, fields: dict[str, Any], to_convert: list[str]) -> SourceRecord | Fault:
    for name in to_convert:
        value = fields[name]
        # pandas' missing number
        fields[name] = None if isinstance(value, float) and math.isnan(value) else _as_json(value)
        try:
            refuse_infinite(fields[name], name)
        except JsonError as fault:
            return Fault(origin, fault.field, fault.found, fault.wanted)
    return SourceRecord(origin, fields)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of a type are those of JSON, and finite."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return not pa.types.is_struct(kind.value_type) and _is_plain(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in tests)


def _as_json(value: Any) -> Any:
    """A value with dates and decimals as text.

    In a list of objects, Parquet gives each object the keys of all of them: those that are null are left out.
    """
    if isinstance(value, dict):
        return {str(key): _as_json(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_as_json(_without_null(child) if isinstance(child, dict) else child) for child in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | timedelta) else value


def _without_null(value: dict[str, Any]) -> dict[str, Any]:
    """An object without keys that are null, also inside its objects."""
    given = {key: child for key, child in value.items() if child is not None}
    return {key: _without_null(child) if isinstance(child, dict) else child for key, child in given.items()}
