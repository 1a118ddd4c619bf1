"""This project's format: `input` and `output`, with `system`, `context` and `in_scope` where they are needed."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import SourceRow
from train.data.formats.turns import question_and_answer, with_context


def _read(row: SourceRow) -> Example:
    return question_and_answer(row, with_context(row, row.text("input")), row.answer("output"))


FORMAT = Format("input_output", "input/output", (("input",), ("output", "in_scope")), _read, optional=("context",))
