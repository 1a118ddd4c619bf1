"""The reinforcement format of OpenAI's fine-tuning API: `messages` without an answer; graders use the other columns.

It must be named: a conversation without its last turn may also be one that has lost it.
"""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.prompt_completion import prompt_in
from train.data.formats.row import SourceRow
from train.data.formats.turns import common_fields, tools_in

_OWN = ("messages", "tools", "functions")


def _read(row: SourceRow) -> Example:
    prompt, tools = tuple(prompt_in(row, "messages")), tools_in(row)
    item = {name: value for name, value in row.columns.items() if name not in _OWN and value is not None}
    row.used.update(item)
    return Example("prompt_only", prompt=prompt, tools=tools, item=item, **common_fields(row))


FORMAT = Format("openai_reinforcement", "OpenAI reinforcement", (("messages",),), _read, is_detected=False)
