"""Preference pairs: `chosen` and `rejected`, with a prompt, or as whole conversations that begin alike."""

import re
from collections.abc import Sequence

from config.dataset import Message
from train.data.examples import Example
from train.data.formats.alpaca import instructed
from train.data.formats.format import Format
from train.data.formats.prompt_completion import is_list, prompt_in
from train.data.formats.row import SourceRow
from train.data.formats.turns import common_fields, parse_turn, tools_in, turns_in, with_system, without_weight

_PROMPTS = ("prompt", "conversations", "conversation", "messages", "question", "input")
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def _read(row: SourceRow) -> Example:
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    prompt = _prompt(row)
    if _is_whole(chosen) or _is_whole(rejected):
        shared, chosen, rejected = _split(row, chosen, rejected)
        if prompt and prompt[-1].content.strip() not in (turn.content.strip() for turn in shared):
            raise row.fault("prompt", prompt[-1].content, "the question of `chosen` and `rejected`")
        prompt = without_weight(with_system(row, shared))
    return preferred(row, prompt, chosen, rejected)


def preferred(
    row: SourceRow, prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]
) -> Example:
    """A pair of answers to one prompt."""
    if not prompt:
        raise row.fault("prompt", None, "a prompt, or conversations that begin with one")
    return Example(
        "preference",
        prompt=tuple(prompt),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        tools=tools_in(row),
        **common_fields(row),
    )


def _prompt(row: SourceRow) -> list[Message]:
    """The prompt that stands in a column of its own; [] if none does."""
    if row.get("instruction") is not None:
        return with_system(row, [Message(role="user", content=instructed(row, "input"))])
    name = next((name for name in _PROMPTS if row.columns.get(name) not in (None, "")), None)
    return [] if name is None else prompt_in(row, name)


def _answer(row: SourceRow, name: str) -> list[Message]:
    """An answer: turns, one turn, a transcript, or its text."""
    value = row.get(name)
    if is_list(row, name):
        return turns_in(row, name)
    if isinstance(value, dict):
        return [parse_turn(row, name, name, value)]
    if isinstance(value, str) and value.startswith("\n\nHuman:"):
        return _transcript(row, name, value)
    return [Message(role="assistant", content=row.answer(name))]


def _transcript(row: SourceRow, name: str, text: str) -> list[Message]:
    """Turns of Anthropic's HH-RLHF, which writes a conversation as one text."""
    parts = _SPEAKER.split(text)[1:]
    turns = [{"from": who, "value": said} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return [parse_turn(row, f"{name}[{index}]", name, turn) for index, turn in enumerate(turns)]


def _is_whole(turns: Sequence[Message]) -> bool:
    return any(turn.role in ("user", "system", "developer") for turn in turns)


def _split(
    row: SourceRow, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The turns that two conversations share at their beginning, up to a question, and how each goes on."""
    num_shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        num_shared += 1
    while num_shared and chosen[num_shared - 1].role not in ("user", "tool"):
        num_shared -= 1
    ends = [("chosen", chosen[num_shared:]), ("rejected", rejected[num_shared:])]
    for name, turns in ends:
        if not num_shared or not turns or _is_whole(turns) or turns[-1].role != "assistant":
            raise row.fault(
                name, [turn.role for turn in turns], "the same turns as in the other answer, then an answer"
            )
    return chosen[:num_shared], ends[0][1], ends[1][1]


FORMAT = Format(
    "preference",
    "preference pairs",
    (("chosen",), ("rejected",)),
    _read,
    optional=(*_PROMPTS, "instruction"),
    beats=(
        "chat",
        "sharegpt",
        "alpaca",
        "dolly",
        "input_output",
        "prompt_completion",
        "question_answer",
        "text_label",
        "text",
    ),
)
