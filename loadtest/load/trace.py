"""A recorded load: the time of each request, and optionally model, prompt and length. CSV or JSONL."""

import csv
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.json_lines import numbered_lines
from loadtest.errors import TraceError


class TraceEvent(BaseModel):
    """One line of a trace; the workload fills in missing fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_s: float = Field(ge=0)
    model: str | None = None
    prompt: str | None = None
    max_tokens: int | None = Field(None, ge=1)


def read_trace(path: Path) -> tuple[TraceEvent, ...]:
    """Read the events, sorted by time.

    Raises:
        TraceError: The file is missing, empty or of another format, or a line is not a valid event.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise TraceError(f"Trace {path.name!r}: got {path.suffix or 'no suffix'!r}, wanted .csv or .jsonl.")
    try:
        lines = readers[path.suffix](path)
    except OSError as error:
        raise TraceError(f"Trace {path.name!r}: {error.strerror or error}. Give the path of a file.") from error
    events = [_event(path, number, fields) for number, fields in lines]
    if not events:
        raise TraceError(f"Trace {path.name!r} is empty; wanted one request per line, with at least `time_s`.")
    return tuple(sorted(events, key=lambda event: event.time_s))


def _read_csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [(rows.line_num, {key: value for key, value in row.items() if value}) for row in rows]


def _read_jsonl(path: Path) -> list[tuple[int, Any]]:
    return [(number, _json(path, number, line)) for number, line in numbered_lines(path.read_text(encoding="utf-8"))]


def _json(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise TraceError(f"Trace {path.name!r}, line {number}: not JSON ({error}).") from None


def _event(path: Path, number: int, fields: Any) -> TraceEvent:
    try:
        return TraceEvent.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        wanted = "time_s, model, prompt, max_tokens"
        raise TraceError(f"Trace {path.name!r}, line {number}: `{key}`: {problem['msg']}. Known: {wanted}.") from None
