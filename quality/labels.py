"""Grades as people write them, and texts in spreadsheets that must not act as formulas."""

import csv

from quality.judge import HIGHEST_GRADE, LOWEST_GRADE, score_of

WORDS = {"right": 1.0, "wrong": 0.0}

_MAX_FIELD_CHARS = 1 << 30  # a prompt may be longer than the csv module's 128 KiB
# A spreadsheet takes a text that begins so for a formula, and a model's answer may well begin so.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def label_score(text: str) -> float | None:
    """The score of a label as people write it: 1 to 5, right or wrong; None of anything else."""
    word = text.strip().lower()
    if word in WORDS:
        return WORDS[word]
    if len(word) == 1 and word.isdecimal() and LOWEST_GRADE <= int(word) <= HIGHEST_GRADE:
        return score_of(int(word))
    return None


def harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def as_written(text: str) -> str:
    """The text of a cell that `harmless` wrote."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text


def allow_long_fields() -> None:
    """Let the csv module read fields of any length."""
    csv.field_size_limit(_MAX_FIELD_CHARS)
