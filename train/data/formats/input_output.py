"""This project's format: `input` and `output`, with `system` and `in_scope` where they are needed."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import Row
from train.data.formats.turns import question_and_answer


def _read(row: Row) -> Example:
    return question_and_answer(row, row.text("input"), row.answer("output"))


FORMAT = Format("input_output", "input/output", (("input",), ("output", "in_scope")), _read)
