"""Examples for tests of cleaning and splitting."""

from collections.abc import Iterable
from typing import Any

from config.dataset import Message, Origin
from train.data.examples import Example

WORDS = (
    "amber",
    "brook",
    "cedar",
    "delta",
    "ember",
    "frost",
    "grove",
    "harbour",
    "island",
    "jasmine",
    "kernel",
    "lagoon",
    "meadow",
    "nectar",
    "orchid",
)


def row(question: str, answer: str = "yes", line: int = 1, **values: Any) -> Example:
    """A question and its answer, from line `line` of `rows.jsonl`."""
    return Example(
        **{
            "type": "prompt_completion",
            "prompt": (Message(role="user", content=question),),
            "completion": (Message(role="assistant", content=answer),),
            "origin": Origin(file="rows.jsonl", line=line),
            **values,
        }
    )


def rows(pairs: Iterable[tuple[str, str]]) -> list[Example]:
    """Questions and answers, from lines 1, 2, …"""
    return [row(question, answer, line) for line, (question, answer) in enumerate(pairs, start=1)]


def distinct(count: int, **values: Any) -> list[Example]:
    """Questions that have little in common, all answered by `yes`."""
    return [row(sentence(number), line=number + 1, **values) for number in range(count)]


def sentence(number: int) -> str:
    first, second, third = WORDS[number % 15], WORDS[number * 7 % 15], WORDS[number // 15 % 15]
    return f"{first} {second} {number * 7919} {third} {number * 104729}"


def questions(examples: Iterable[Example]) -> list[str]:
    return [example.question for example in examples]
