"""Lengths of questions and answers in characters, and rows that are far longer than the others."""

from collections.abc import Callable, Sequence
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
    mean: float
    total: int


def summarize_lengths(lengths: Sequence[int]) -> LengthSummary:
    """Quantiles are lengths that occur, so that each is that of a row."""
    values = np.asarray(lengths)
    median, p95, p99 = (int(each) for each in np.quantile(values, [0.5, 0.95, 0.99], method="inverted_cdf"))
    total = int(values.sum())
    return LengthSummary(int(values.min()), median, p95, p99, int(values.max()), total / len(values), total)


@dataclass(frozen=True)
class CharLengths:
    questions: LengthSummary
    answers: LengthSummary
    findings: tuple[Finding, ...]


def check_lengths(examples: Sequence[Example]) -> CharLengths:
    """Characters of questions and answers; empty ones and outliers are findings. `examples` must not be empty."""
    findings = [
        finding(example, f"the {part} is empty")
        for example in examples
        for part, text in (("question", _question(example)), ("answer", example.answer or example.text))
        if not text.strip()
    ]
    questions, long_questions = _measured(examples, "question", _question)
    answers, long_answers = _measured(examples, "answer", lambda example: example.answer)
    return CharLengths(questions, answers, (*findings, *long_questions, *long_answers))


def _question(example: Example) -> str:
    return example.question or example.text


def _measured(
    examples: Sequence[Example], part: str, text_of: Callable[[Example], str]
) -> tuple[LengthSummary, list[Finding]]:
    lengths = [len(text_of(example)) for example in examples]
    summary = summarize_lengths(lengths)
    most = _MAX_TIMES_P99 * max(summary.p99, 1)
    findings = [
        finding(
            example, f"the {part} has {length:,} characters, 99% have at most {summary.p99:,}", text=text_of(example)
        )
        for example, length in zip(examples, lengths, strict=True)
        if len(examples) >= _MIN_ROWS and length > most
    ]
    return summary, findings
