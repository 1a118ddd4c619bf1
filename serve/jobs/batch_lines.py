"""Read the lines of a batch's input, and check all of them before any is answered."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from adapters.jobs.records import BatchFault
from serve.api.bodies import parse_object
from serve.engine.protocol import Endpoint
from serve.errors import InvalidRequestError

MAX_LINES = 50_000
MAX_FAULTS = 100
"""Maximum number of errors reported per batch; then the check ends."""

_MAX_CUSTOM_ID_CHARS = 512
_LINE_OVERHEAD_BYTES = 4096
"""Maximum size of a line without its `body`."""
_WORK_S, _REST_S = 0.002, 0.004
"""A check holds the GIL, so it pauses regularly; otherwise clients' tokens would be delayed."""

Fingerprint = bytes
"""Digest of a `custom_id`, to keep the memory for 50,000 long ones small."""


@dataclass(frozen=True)
class BatchLine:
    """One request of a batch."""

    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True)
class CheckedInput:
    """The result of checking a batch's input.

    `model` is None if the lines name several models. If there are faults, no line is answered.
    """

    num_lines: int
    model: str | None
    faults: tuple[BatchFault, ...]


class LineError(ValueError):
    """A line that is not a request; `code` and `param` are those of OpenAI's batch errors."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def fingerprint_of(custom_id: str) -> Fingerprint:
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def read_lines(file: BinaryIO, max_body_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1. Lines over the limit are truncated, but stay over it."""
    most, number = max_body_bytes + _LINE_OVERHEAD_BYTES, 0
    while raw := file.readline(most + 1):
        number += 1
        is_cut = len(raw) > most and not raw.endswith(b"\n")
        while is_cut and (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        if raw.strip():
            yield number, raw


def parse_line(raw: bytes, endpoint: Endpoint, max_body_bytes: int) -> BatchLine:
    """Raises LineError."""
    if len(raw) > max_body_bytes + _LINE_OVERHEAD_BYTES:
        raise LineError("line_too_long", f"The line is longer than the {max_body_bytes} bytes that a body may have.")
    try:
        line = parse_object(raw)
    except InvalidRequestError as error:
        reason = str(error).replace("The body", "The line", 1)
        raise LineError("invalid_json_line", reason) from None
    custom_id, body = line.get("custom_id"), line.get("body")
    for field in ("custom_id", "method", "url", "body"):
        if line.get(field) is None:
            raise LineError("missing_required_parameter", f"The line has no `{field}`.", field)
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_CUSTOM_ID_CHARS:
        wanted = f"a string of 1 to {_MAX_CUSTOM_ID_CHARS} characters"
        raise LineError("invalid_custom_id", f"`custom_id` must be {wanted}, not {_shown(custom_id)}.", "custom_id")
    if line["method"] != "POST":
        raise LineError("invalid_method", f"`method` must be 'POST', not {_shown(line['method'])}.", "method")
    if line["url"] != f"/v1/{endpoint}":
        wanted = f"the batch's endpoint, '/v1/{endpoint}'"
        raise LineError("invalid_url", f"`url` must be {wanted}, not {_shown(line['url'])}.", "url")
    if not isinstance(body, dict):
        raise LineError("invalid_request", f"`body` must be an object, not {_shown(body)}.", "body")
    if body.get("stream") not in (None, False):
        raise LineError("invalid_request", "`stream` cannot be set in a batch; leave it out.", "body.stream")
    return BatchLine(custom_id, body)


def check_input(
    file: BinaryIO,
    endpoint: Endpoint,
    max_body_bytes: int,
    is_model: Callable[[str], bool],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> CheckedInput:
    """Check all lines; blocks, with pauses.

    Args:
        is_model: Whether the batch may use this `model`.
    """
    found: set[Fingerprint] = set()
    models: set[str] = set()
    faults: list[BatchFault] = []
    num_lines, began_s = 0, time.perf_counter()
    for number, raw in read_lines(file, max_body_bytes):
        num_lines += 1
        if num_lines > MAX_LINES:
            faults.append(_too_many())
        try:
            if num_lines <= MAX_LINES:
                _add(parse_line(raw, endpoint, max_body_bytes), found, models, is_model)
        except LineError as error:
            faults.append(BatchFault(code=error.code, message=str(error), line=number, param=error.param))
        if num_lines > MAX_LINES or len(faults) >= MAX_FAULTS:
            break
        if time.perf_counter() - began_s > _WORK_S:
            sleep(_REST_S)
            began_s = time.perf_counter()
    if not num_lines:
        faults.append(BatchFault(code="empty_file", message="The input file has no request. Write one per line."))
    return CheckedInput(num_lines, models.pop() if len(models) == 1 else None, tuple(faults))


def _add(line: BatchLine, found: set[Fingerprint], models: set[str], is_model: Callable[[str], bool]) -> None:
    """Raises LineError if the `custom_id` is a duplicate or the model does not exist."""
    fingerprint, model = fingerprint_of(line.custom_id), line.body.get("model")
    if fingerprint in found:
        message = f"The `custom_id` {_shown(line.custom_id)} is used by an earlier line; it must be unique."
        raise LineError("duplicate_custom_id", message, "custom_id")
    found.add(fingerprint)
    if isinstance(model, str) and model in models:
        return
    if not isinstance(model, str) or not is_model(model):
        message = (
            f"The model {_shown(model)} does not exist, or is not of the base of this batch's first line. "
            "GET /v1/models lists the available models."
        )
        raise LineError("model_not_found", message, "body.model")
    models.add(model)


def _too_many() -> BatchFault:
    message = f"The input file has more than {MAX_LINES} requests. Split it into several batches."
    return BatchFault(code="too_many_tasks", message=message)


def _shown(value: object) -> str:
    return repr(value)[:80]
