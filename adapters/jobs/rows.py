"""Records to rows of the database, and back."""

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from adapters.jobs.errors import UnknownIdError
from adapters.jobs.records import Page
from adapters.store.record import Record

MAX_PAGE = 1000
"""Reading more would hold up a server for tens of milliseconds. OpenAI's client requests the next page by itself."""

_MAX_SHOWN = 80

_JSON_COLUMNS = frozenset({"metadata", "method", "lorikeet", "result_files", "error", "data", "metrics", "errors"})

RecordT = TypeVar("RecordT", bound=Record)
Conditions = dict[str, Any]
"""SQL conditions by their value, or a tuple of values; one whose value is None is left out."""


def insert(connection: sqlite3.Connection, table: str, record: RecordT, verb: str = "INSERT") -> RecordT:
    """Returns the record as it is stored: `cleaned`."""
    values = cleaned(record)
    columns = {name: _stored(name, value) for name, value in values.items()}
    places = ", ".join("?" * len(columns))
    connection.execute(f"{verb} INTO {table} ({', '.join(columns)}) VALUES ({places})", list(columns.values()))
    return type(record).model_validate(values)


def update(connection: sqlite3.Connection, table: str, record_id: str, **changes: Any) -> None:
    columns = ", ".join(f"{name} = ?" for name in changes)
    values = [_stored(name, cleaned(value)) for name, value in changes.items()]
    connection.execute(f"UPDATE {table} SET {columns} WHERE id = ?", (*values, record_id))


def find(
    connection: sqlite3.Connection, record: type[RecordT], table: str, conditions: Conditions, end: str = ""
) -> tuple[RecordT, ...]:
    where, values = _where(conditions)
    rows = connection.execute(f"SELECT * FROM {table} WHERE {where} {end}", values).fetchall()
    return tuple(loaded(record, row) for row in rows)


def find_page(
    connection: sqlite3.Connection,
    record: type[RecordT],
    table: str,
    conditions: Conditions,
    *,
    after: str | None,
    limit: int,
    is_newest_first: bool = True,
    after_conditions: Conditions | None = None,
    id_column: str = "id",
) -> Page[RecordT]:
    """Rows in the order of their creation, after the one with the id `after`.

    Raises:
        UnknownIdError: No row with that id meets `after_conditions` (default: `conditions`).
    """
    limit = max(0, min(limit, MAX_PAGE))
    asked = dict(conditions)
    if after is not None:
        mine = conditions if after_conditions is None else after_conditions
        where, values = _where({**mine, f"{id_column} = ?": after})
        found = connection.execute(f"SELECT seq FROM {table} WHERE {where}", values).fetchone()
        if found is None:
            raise UnknownIdError(f"There is no {shown(after)!r} to list after.", param="after")
        asked[f"seq {'<' if is_newest_first else '>'} ?"] = found[0]
    order = f"ORDER BY seq {'DESC' if is_newest_first else 'ASC'} LIMIT {limit + 1}"
    items = find(connection, record, table, asked, order)
    return Page(items=items[:limit], has_more=len(items) > limit)


def loaded(record: type[RecordT], row: sqlite3.Row) -> RecordT:
    columns = {name: value for name, value in dict(row).items() if name in record.model_fields}
    for name in _JSON_COLUMNS & columns.keys():
        columns[name] = None if columns[name] is None else json.loads(columns[name])
    return record.model_validate(columns)


def cleaned(value: Any) -> Any:
    """A value without what JSON may hold and answers may not: half characters become `?`, NaN and infinity null."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Record):
        return cleaned(value.model_dump())
    if isinstance(value, Mapping):
        return {cleaned(str(key)): cleaned(item) for key, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list | tuple) else value


def shown(text: str) -> str:
    """The beginning of what a client wrote, for messages."""
    return str(cleaned(text[:_MAX_SHOWN]))


def status_list(statuses: Iterable[str]) -> str:
    """Statuses as literals for `IN (…)`. SQLite uses no index for `NOT IN`, so list the wanted ones."""
    return ", ".join(f"'{status}'" for status in sorted(statuses))


def _stored(name: str, value: Any) -> Any:
    return json.dumps(value) if name in _JSON_COLUMNS and value is not None else value


def _where(conditions: Conditions) -> tuple[str, list[Any]]:
    asked = {sql: value for sql, value in conditions.items() if value is not None}
    values = [item for value in asked.values() for item in (value if isinstance(value, tuple) else (value,))]
    return " AND ".join(f"({sql})" for sql in asked) or "1", cleaned(values)
