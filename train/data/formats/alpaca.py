"""Alpaca's format: `instruction`, `input` (may be empty), `output`; `history` holds earlier turns."""

from config.dataset import Message
from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import SourceRow
from train.data.formats.turns import question_and_answer


def _read(row: SourceRow) -> Example:
    return question_and_answer(row, instructed(row, "input"), row.answer("output"), history(row))


def instructed(row: SourceRow, context: str) -> str:
    """The question: an instruction and, after a blank line, what it is about."""
    instruction, about = row.text("instruction"), row.optional_text(context)
    return f"{instruction}\n\n{about}" if about else instruction


def history(row: SourceRow) -> list[Message]:
    """Earlier turns: `history` is a list of pairs of a question and its answer."""
    if row.get("history") in (None, ""):
        return []
    turns = []
    for index, pair in enumerate(row.items("history", "a list of [question, answer]")):
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text for text in pair)
        if not is_pair:
            raise row.fault(f"history[{index}]", pair, "[question, answer]")
        turns += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return turns


FORMAT = Format(
    "alpaca",
    "Alpaca",
    (("instruction",), ("output",)),
    _read,
    optional=("input", "history"),
    beats=("input_output",),
)
