"""ShareGPT's format and its variants: `conversations` of `from` and `value`, or of `role` and `content`."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import SourceRow
from train.data.formats.turns import conversation, turns_in


def _read(row: SourceRow) -> Example:
    name = "conversations" if row.get("conversations") is not None else "conversation"
    return conversation(row, turns_in(row, name))


FORMAT = Format("sharegpt", "ShareGPT", (("conversations", "conversation"),), _read)
