"""The preference format of OpenAI's fine-tuning API: `input.messages`, `preferred_output`, `non_preferred_output`."""

from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.preference import preferred
from train.data.formats.prompt_completion import completion_in
from train.data.formats.row import SourceRow
from train.data.formats.turns import parse_turn, with_system, without_weight


def _read(row: SourceRow) -> Example:
    given = row.get("input")
    turns = given.get("messages") if isinstance(given, dict) else None
    if not isinstance(turns, list) or not turns:
        raise row.fault("input", given, 'an object with the prompt, {"messages": [{"role": "user", "content": "…"}]}')
    row.columns.setdefault("tools", given.get("tools"))
    row.seen.update(f"input.{key}" for key in given.keys() - {"messages", "tools"})
    prompt = [parse_turn(row, f"input.messages[{index}]", "input.messages", turn) for index, turn in enumerate(turns)]
    chosen, rejected = completion_in(row, "preferred_output"), completion_in(row, "non_preferred_output")
    return preferred(row, without_weight(with_system(row, prompt)), chosen, rejected)


FORMAT = Format(
    "openai_preference",
    "OpenAI preference",
    (("preferred_output",), ("non_preferred_output",), ("input",)),
    _read,
    beats=("input_output",),
)
