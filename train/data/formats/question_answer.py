"""`question` and `answer`; a `context` stands before the question."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import SourceRow
from train.data.formats.turns import question_and_answer, with_context


def _read(row: SourceRow) -> Example:
    return question_and_answer(row, with_context(row, row.text("question")), row.answer("answer"))


FORMAT = Format("question_answer", "question/answer", (("question",), ("answer",)), _read, optional=("context",))
