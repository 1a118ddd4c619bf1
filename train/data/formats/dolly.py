"""Dolly's format: `instruction`, `context` (may be empty), `response`."""

from train.data.examples import Example
from train.data.formats.alpaca import instructed
from train.data.formats.format import Format
from train.data.formats.row import SourceRow
from train.data.formats.turns import question_and_answer


def _read(row: SourceRow) -> Example:
    return question_and_answer(row, instructed(row, "context"), row.answer("response"))


FORMAT = Format("dolly", "Dolly", (("instruction",), ("response",)), _read, optional=("context",))
