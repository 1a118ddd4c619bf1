"""KTO's format: `prompt`, `completion`, and a `label` that says whether the completion is good."""

from dataclasses import replace

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.prompt_completion import completion_in, prompt_in
from train.data.formats.row import SourceRow
from train.data.formats.turns import example


def _read(row: SourceRow) -> Example:
    found = example(row, prompt_in(row), completion_in(row))
    return replace(found, type="unpaired_preference", label=row.flag("label"))


FORMAT = Format(
    "unpaired_preference",
    "KTO",
    (("prompt",), ("completion",), ("label",)),
    _read,
    beats=("prompt_completion",),
)
