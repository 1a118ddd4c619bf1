"""`evaluation.jsonl` of a version: each held-out question with both answers and their scores, one a line."""

import logging
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

EVALUATION_FILE = "evaluation.jsonl"
MAX_TEXT_CHARS = 4_000
"""Of one question or answer; the rest is cut, and an ellipsis stands for it."""
MAX_FILE_BYTES = 32 << 20

logger = logging.getLogger(__name__)


class InvalidEvaluationError(ValueError):
    """An invalid `evaluation.jsonl`."""


class ScoredPair(BaseModel):
    """Scores of both answers by one metric; None: the metric could not score it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: FiniteFloat | None
    adapter: FiniteFloat | None


class EvaluatedItem(BaseModel):
    """One held-out question. Texts and slices are None in a domain that does not publish its held-out questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    question: str | None = None
    expected: str | None = None
    base: str | None = Field(None, description="The base's answer.")
    adapter: str | None = Field(None, description="The version's answer.")
    slices: dict[str, str] | None = None
    scores: dict[str, ScoredPair] = Field(description="By metric.")
    left_out: dict[str, str] = Field({}, description="Why a metric could not score an answer, by metric.")


def write_evaluated(items: Iterable[EvaluatedItem], folder: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write `evaluation.jsonl`; what does not fit into the limit is left out and told in the log."""
    path, lines, size, num_left_out = folder / EVALUATION_FILE, [], 0, 0
    for item in items:
        line = item.model_dump_json(exclude_defaults=True).encode() + b"\n"
        size += len(line)
        if size > max_bytes:
            num_left_out += 1
        else:
            lines.append(line)
    if num_left_out:
        logger.warning(
            "%s holds %d of %d questions: the limit is %d bytes",
            EVALUATION_FILE, len(lines), len(lines) + num_left_out, max_bytes,
        )  # fmt: skip
    path.touch(mode=0o600)  # held-out questions with their answers
    path.write_bytes(b"".join(lines))


def read_evaluated(folder: Path) -> tuple[EvaluatedItem, ...]:
    """The items of a version folder; none if it has no such file.

    Raises:
        InvalidEvaluationError: A line is not a valid item.
    """
    path = folder / EVALUATION_FILE
    if not path.exists():
        return ()
    items = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            items.append(EvaluatedItem.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            raise InvalidEvaluationError(
                f"{EVALUATION_FILE} of {folder.name!r} is broken in line {number}: {problem['msg']}. Train it again."
            ) from error
    return tuple(items)


def cut(text: str) -> str:
    """The text within its limit; half of a surrogate pair, which no file can hold, becomes a question mark."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[: MAX_TEXT_CHARS - 1]}…"
