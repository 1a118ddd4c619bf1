"""OpenAI's chat format for fine-tuning: `messages` with tools, tool calls and weights."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import SourceRow
from train.data.formats.turns import conversation, turns_in


def _read(row: SourceRow) -> Example:
    return conversation(row, turns_in(row, "messages"))


FORMAT = Format("chat", "OpenAI chat", (("messages",),), _read)
