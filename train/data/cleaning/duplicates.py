"""Exact duplicates, and near duplicates within the training split."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial

from config.data import CleaningConfig
from train.data.cleaning.identity import answer_key, row_key
from train.data.cleaning.near_copies import NearCopies
from train.data.examples import Example
from train.data.steps import EXACT_DUPLICATES, NEAR_DUPLICATES, Finding, Step, StepResult, finding


def drop_exact_duplicates(examples: Sequence[Example], config: CleaningConfig) -> StepResult:
    """Keep the first of equal rows.

    A row pinned to training is preferred to one that may be held out, and a written one to a synthetic one.
    """
    kept: dict[Hashable, Example] = {}
    findings: list[Finding] = []
    for example in examples:
        key = row_key(example)
        earlier = kept.setdefault(key, example)
        if earlier is example:
            continue
        if _is_preferred(example, earlier):
            kept[key], example, earlier = example, earlier, example
        findings.append(finding(example, "equal to another row", earlier))
    remaining = tuple(examples) if config.exact_duplicates == "keep" else tuple(kept.values())
    return StepResult(remaining, Step(EXACT_DUPLICATES, len(examples), len(remaining), findings=tuple(findings)))


def drop_near_duplicates(
    train: Sequence[Example], config: CleaningConfig, on_rows: Callable[[int], None] = lambda count: None
) -> StepResult:
    """Drop training rows that are nearly equal to an earlier one and have the same answer."""
    if config.near_duplicates == "keep":
        return StepResult(tuple(train), Step(NEAR_DUPLICATES, len(train), len(train)))
    index = NearCopies(config.near_duplicate_jaccard, train)
    kept: list[Example] = []
    findings: list[Finding] = []
    for example, texts in zip(train, index.compared(train, on_rows), strict=True):
        answer = answer_key(example)
        earlier = index.find(example, texts, partial(_has_answer, answer))
        if earlier is None:
            index.add(example, texts)
            kept.append(example)
        else:
            findings.append(finding(example, "nearly equal to an earlier row with the same answer", earlier))
    return StepResult(tuple(kept), Step(NEAR_DUPLICATES, len(train), len(kept), findings=tuple(findings)))


def _has_answer(answer: Hashable, example: Example) -> bool:
    return answer_key(example) == answer


def _is_preferred(example: Example, earlier: Example) -> bool:
    return _rank(example) > _rank(earlier)


def _rank(example: Example) -> tuple[bool, int]:
    return not example.is_synthetic, {"train": 2, None: 0}.get(example.split, 1)
