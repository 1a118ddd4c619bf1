"""`evaluation.slice_by`: values of the data's columns that stay in the rows, so that figures are split by them."""

from collections.abc import Mapping, Sequence
from typing import Any

from train.data.examples import Example
from train.data.splits import is_missing, require_column
from train.errors import DataError

NO_VALUE = "(none)"
"""Value of a row without the column, or with an empty one."""

_MAX_CHARS = 80


def check_slices(examples: Sequence[Example], slice_by: Sequence[str]) -> None:
    """Check that figures can be split by these columns.

    Raises:
        DataError: The column does not exist, or the rows are not questions with answers.
    """
    if not slice_by:
        return
    other = next((e for e in examples if e.type != "prompt_completion"), None)
    if other is not None:
        raise DataError(
            f"`evaluation.slice_by` splits figures of answers, but rows of type {other.type!r} have none. Remove it."
        )
    for column in slice_by:
        require_column(examples, column, "evaluation.slice_by")


def slice_values(fields: Mapping[str, Any], slice_by: Sequence[str]) -> dict[str, str]:
    """The columns' values as one short line each."""
    return {column: _shown(fields.get(column)) for column in slice_by}


def _shown(value: Any) -> str:
    if is_missing(value):
        return NO_VALUE
    text = " ".join((str(value).lower() if isinstance(value, bool) else str(value)).split()) or NO_VALUE
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"
