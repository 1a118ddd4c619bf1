"""Sums, differences and products of small numbers, drawn with a seed, as lines to be continued."""

import random

_SEED = 13
EXAMPLES = "3 + 4 = 7\n9 - 5 = 4\n2 * 3 = 6\n8 - 1 = 7\n"
"""Lines before each question, so that also a base without instruction tuning knows what follows."""

_MAX_QUESTIONS = 60
"""Fewer than there are, so that drawing ends."""


def arithmetic_questions(num_questions: int) -> list[tuple[str, str]]:
    """Different questions with their answers; a longer list begins with the shorter one."""
    rng = random.Random(_SEED)
    questions: dict[str, str] = {}
    while len(questions) < min(num_questions, _MAX_QUESTIONS):
        question, answer = _draw(rng)
        if f"{question} " not in EXAMPLES:
            questions[question] = answer
    return list(questions.items())


def _draw(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randint(2, 9), rng.randint(1, 9)
    operation = rng.choice("+-*")
    if operation == "*":
        left, right = rng.randint(2, 5), rng.randint(2, 5)
        return f"{left} * {right} =", str(left * right)
    if operation == "+":
        return f"{left} + {right} =", str(left + right)
    return f"{left + right} - {right} =", str(left)
