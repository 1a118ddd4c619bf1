"""When two rows are equal: the same turns and tools in NFC and without outer white space."""

import json
import unicodedata
from collections.abc import Hashable, Sequence

from config.dataset import Message
from train.data.examples import Example


def folded(text: str) -> str:
    """NFC without outer white space; inner white space, case, punctuation and symbols are kept."""
    return unicodedata.normalize("NFC", text).strip()


def prompt_key(example: Example) -> Hashable:
    """Equal for rows that ask the same: all turns, the system prompt and the tools count."""
    tools = json.dumps(example.tools, sort_keys=True, ensure_ascii=False) if example.tools else ""
    return _turns_key(example.prompt), folded(example.text), tools


def answer_key(example: Example) -> Hashable:
    """Equal for rows that answer the same; JSON answers are compared by their values."""
    return *_answer_turns(example, by_value=True), example.label


def row_key(example: Example) -> Hashable:
    """Equal for rows that are copies of each other."""
    return example.type, prompt_key(example), *_answer_turns(example), example.label


def _answer_turns(example: Example, *, by_value: bool = False) -> tuple[Hashable, ...]:
    answers = example.completion, example.chosen, example.rejected
    return tuple(_turns_key(turns, by_value=by_value) for turns in answers)


def _turns_key(turns: Sequence[Message], *, by_value: bool = False) -> tuple[Hashable, ...]:
    return tuple(_turn_key(turn, by_value) for turn in turns)


def _turn_key(turn: Message, by_value: bool) -> Hashable:
    text = folded(turn.content)
    if by_value and text[:1] in ("{", "["):
        text = _canonical_json(text)
    if not (turn.tool_calls or turn.name or turn.tool_call_id):
        return turn.role, text
    calls = [call.function.model_dump(mode="json") for call in turn.tool_calls]
    return turn.role, text, turn.name, turn.tool_call_id, json.dumps(calls, sort_keys=True, ensure_ascii=False)


def _canonical_json(text: str) -> str:
    try:
        return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
