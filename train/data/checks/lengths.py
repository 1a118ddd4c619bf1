"""Lengths of questions and answers in characters, and rows that are far longer than the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from train.data.examples import Example
from train.data.steps import Finding, finding

_MIN_ROWS = 20
_MAX_TIMES_P99 = 4
"""A row is an outlier if it is four times as long as 99 of 100 rows."""


@dataclass(frozen=True)
class LengthSummary:
    """Quantiles of a number of characters or tokens."""

    smallest: int
    median: int
    p95: int
    p99: int
    largest: int
    total: int


def summarize_lengths(lengths: Sequence[int]) -> LengthSummary:
    """Quantiles are lengths that occur, so that each is that of a row. `lengths` must not be empty."""
    values = np.asarray(lengths)
    median, p95, p99 = (int(each) for each in np.quantile(values, [0.5, 0.95, 0.99], method="inverted_cdf"))
    total = int(values.sum())
    return LengthSummary(int(values.min()), median, p95, p99, int(values.max()), total)


def check_lengths(examples: Sequence[Example]) -> tuple[Finding, ...]:
    """Rows whose question or answer is empty, or far longer than those of others."""
    empty = [
        finding(example, f"the {part} is empty")
        for example in examples
        for part in ("question", "answer")
        if _is_empty(example, part)
    ]
    return (
        *empty,
        *_long(examples, "question", lambda example: example.question or example.text),
        *_long(examples, "answer", lambda example: example.answer),
    )


def _is_empty(example: Example, part: str) -> bool:
    """An answer that calls tools needs no text; raw text has no answer, and a prompt alone none either."""
    if part == "question":
        return not (example.question or example.text).strip()
    turns = example.completion or example.chosen
    return bool(turns) and not example.answer.strip() and not turns[-1].tool_calls


def _long(examples: Sequence[Example], part: str, text_of: Callable[[Example], str]) -> Iterator[Finding]:
    if len(examples) < _MIN_ROWS:
        return
    p99 = summarize_lengths([len(text_of(example)) for example in examples]).p99
    for example in examples:
        text = text_of(example)
        if len(text) > _MAX_TIMES_P99 * max(p99, 1):
            reason = f"the {part} has {len(text):,} characters, 99% have at most {p99:,}"
            yield finding(example, reason, text=text)
