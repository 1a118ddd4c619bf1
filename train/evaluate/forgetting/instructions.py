"""Instructions whose result a rule can check, drawn with a seed; the idea is IFEval's (https://arxiv.org/abs/2311.07911).

Only whether the rule holds counts, not whether the answer is true or useful.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

_SEED = 13
Rule = Callable[[str], bool]

_TOPICS = (
    "the sea", "a small town", "winter", "bread", "an old clock", "football", "a train journey", "the moon", "tea",
    "a garden", "music", "a library", "rain", "a bicycle", "the desert", "a market",
)  # fmt: skip
_KEYWORDS = ("window", "river", "yellow", "morning", "stone", "letter", "bridge", "apple")
_ENDINGS = ("That is all.", "The end.", "Ask me again.", "Good night.")
PLAIN_ANSWER = "This is an ordinary sentence, and it follows no instruction."
"""What a model answers that hears no instruction: the share of rules that it happens to keep is chance."""


@dataclass(frozen=True)
class Instruction:
    """A request, and the rule that its answer must keep."""

    text: str
    is_followed: Rule


def instructions(num_questions: int) -> list[Instruction]:
    """Different instructions, of all kinds in turn; a longer list begins with the shorter one."""
    rng = random.Random(_SEED)
    made: dict[str, Instruction] = {}
    while len(made) < min(num_questions, _MAX_INSTRUCTIONS):
        for kind in _KINDS:
            instruction = kind(rng, rng.choice(_TOPICS))
            made.setdefault(instruction.text, instruction)
    return list(made.values())[:num_questions]


_MAX_INSTRUCTIONS = 100
"""Fewer than there are, so that drawing ends."""


def _upper_case(rng: random.Random, topic: str) -> Instruction:
    return Instruction(
        f"Write one sentence about {topic} in capital letters only.",
        lambda answer: any(map(str.isalpha, answer)) and answer == answer.upper(),
    )


def _lower_case(rng: random.Random, topic: str) -> Instruction:
    return Instruction(
        f"Write one sentence about {topic} in lower case letters only, without any capital letter.",
        lambda answer: any(map(str.isalpha, answer)) and answer == answer.lower(),
    )


def _num_words(rng: random.Random, topic: str) -> Instruction:
    number = rng.randint(3, 6)
    return Instruction(
        f"Describe {topic} in exactly {number} words.", lambda answer: len(re.findall(r"[\w'-]+", answer)) == number
    )


def _ends_with(rng: random.Random, topic: str) -> Instruction:
    ending = rng.choice(_ENDINGS)
    return Instruction(
        f"Write one short sentence about {topic}. Finish your answer with the exact words: {ending}",
        lambda answer: answer.strip().endswith(ending),
    )


def _keyword(rng: random.Random, topic: str) -> Instruction:
    word = rng.choice(_KEYWORDS)
    return Instruction(
        f'Write one sentence about {topic} that contains the word "{word}".',
        lambda answer: re.search(rf"\b{word}\b", answer.lower()) is not None,
    )


def _repeat(rng: random.Random, topic: str) -> Instruction:
    word = rng.choice(_KEYWORDS)
    return Instruction(
        f'Answer with the single word "{word}" and nothing else. Do not write about {topic}.',
        lambda answer: answer.strip().strip('".').lower() == word,
    )


def _bullets(rng: random.Random, topic: str) -> Instruction:
    number = rng.randint(2, 3)
    return Instruction(
        f"Name {number} words about {topic} as bullet points. Begin each line with a star (*), and write nothing else.",
        lambda answer: [line[:1] for line in answer.strip().splitlines()] == ["*"] * number,
    )


def _json_list(rng: random.Random, topic: str) -> Instruction:
    number = rng.randint(2, 3)
    return Instruction(
        f'Name {number} words about {topic} as a JSON list of strings, as in ["one", "two"], and write nothing else.',
        lambda answer: _is_list_of_strings(answer, number),
    )


def _is_list_of_strings(answer: str, number: int) -> bool:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and len(found) == number and all(isinstance(word, str) for word in found)


_KINDS = (_upper_case, _lower_case, _num_words, _ends_with, _keyword, _repeat, _bullets, _json_list)
