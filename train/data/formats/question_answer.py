"""`question` and `answer`; a `context` stands before the question."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import Row
from train.data.formats.turns import question_and_answer


def _read(row: Row) -> Example:
    question, context = row.text("question"), row.optional_text("context")
    return question_and_answer(row, f"{context}\n\n{question}" if context else question, row.answer("answer"))


FORMAT = Format("question_answer", "question/answer", (("question",), ("answer",)), _read, optional=("context",))
