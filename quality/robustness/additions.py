"""Texts put before or after a question: distractors, a long context, injected and contradictory instructions."""

from collections.abc import Mapping
from itertools import cycle
from random import Random

from quality.robustness.texts import DISTRACTORS, FILLER


def with_distractors(text: str, draw: Random) -> tuple[str, str]:
    """(variant, text): one or two irrelevant sentences before the question, after it, or one on either side."""
    variant = draw.choice(("before", "after", "both"))
    first, second = draw.sample(DISTRACTORS, 2)
    if variant == "both":
        return variant, f"{first}\n{text}\n{second}"
    added = draw.choice((first, f"{first} {second}"))
    return variant, f"{added}\n{text}" if variant == "before" else f"{text}\n{added}"


def with_long_context(text: str, num_words: int) -> str:
    """The question after so many words of irrelevant text that all are `num_words`; as it is if it has them already.

    The text starts with the same words for every question, so the prefix cache covers most of it.
    """
    missing = num_words - len(text.split())
    if missing <= 0:
        return text
    words: list[str] = []
    for sentence in cycle(FILLER):
        words += sentence.split()
        if len(words) >= missing:
            break
    return f"{' '.join(words[:missing])}\n\n{text}"


def with_instruction(text: str, instructions: Mapping[str, str], draw: Random) -> tuple[str, str]:
    """(variant, text): an instruction after the question."""
    variant = draw.choice(sorted(instructions))
    return variant, f"{text}\n{instructions[variant]}"
