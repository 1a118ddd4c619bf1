"""All texts of an example, and the same example with other texts."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from config.dataset import Message
from train.data.examples import Example


def texts_of(example: Example) -> Iterator[str]:
    """Each text that the model reads or learns: turns, arguments of tool calls, raw text."""
    for turns in (example.prompt, example.completion, example.chosen, example.rejected):
        for turn in turns:
            yield turn.content
            for call in turn.tool_calls:
                yield from _strings(call.function.arguments)
    yield example.text


def with_texts(example: Example, change: Callable[[str], str]) -> Example:
    """The example with `change` applied to the texts that `texts_of` yields."""

    def changed(turns: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(_with_texts(turn, change) for turn in turns)

    return replace(
        example,
        prompt=changed(example.prompt),
        completion=changed(example.completion),
        chosen=changed(example.chosen),
        rejected=changed(example.rejected),
        text=change(example.text),
    )


def _with_texts(turn: Message, change: Callable[[str], str]) -> Message:
    calls = tuple(
        call.model_copy(
            update={
                "function": call.function.model_copy(update={"arguments": _mapped(call.function.arguments, change)})
            }
        )
        for call in turn.tool_calls
    )
    return turn.model_copy(update={"content": change(turn.content), "tool_calls": calls})


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(each, change) for name, each in value.items()}
    return [_mapped(each, change) for each in value] if isinstance(value, list) else value
