"""TRL's prompt-only format: a `prompt` without an answer. It must be named: a prompt alone may have lost its answer."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.prompt_completion import prompt_in
from train.data.formats.row import SourceRow
from train.data.formats.turns import common_fields, tools_in


def _read(row: SourceRow) -> Example:
    return Example("prompt_only", prompt=tuple(prompt_in(row)), tools=tools_in(row), **common_fields(row))


FORMAT = Format("prompt_only", "prompt only", (("prompt",),), _read, is_detected=False)
