"""Classification: `text` and its `label`."""

from dataclasses import replace

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import SourceRow
from train.data.formats.turns import question_and_answer


def _read(row: SourceRow) -> Example:
    label = row.answer("label")
    return replace(question_and_answer(row, row.text("text"), label), stratum=label)


FORMAT = Format("text_label", "text/label", (("text",), ("label",)), _read, beats=("text",))
