"""Exact duplicates, and near duplicates within the training split."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

from config.data import CleaningConfig
from train.data.cleaning.embeddings import similar_to_earlier
from train.data.cleaning.identity import answer_key, row_key
from train.data.cleaning.near_copies import NearCopies, prompt_text
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
    """Drop training rows that are nearly equal to an earlier one and have the same answer.

    Raises:
        DataError: `near_duplicate_cosine` is set, and the extra `embeddings` is not installed.
    """
    if config.near_duplicates == "keep":
        return StepResult(tuple(train), Step(NEAR_DUPLICATES, len(train), len(train)))
    found = dict(_by_minhash(train, config.near_duplicate_jaccard, on_rows))
    if config.near_duplicate_cosine is not None:
        rest = [number for number in range(len(train)) if number not in found]
        found |= _by_meaning(train, rest, config.near_duplicate_cosine)
    findings = tuple(
        finding(train[number], f"{how} an earlier row with the same answer", other)
        for number, (how, other) in sorted(found.items())
    )
    kept = tuple(row for number, row in enumerate(train) if number not in found)
    return StepResult(kept, Step(NEAR_DUPLICATES, len(train), len(kept), findings=findings))


def _by_minhash(
    train: Sequence[Example], jaccard: float, on_rows: Callable[[int], None]
) -> Iterator[tuple[int, tuple[str, Example]]]:
    index = NearCopies(jaccard, train)
    for number, (example, texts) in enumerate(zip(train, index.compared(train, on_rows), strict=True)):
        earlier = index.find(example, texts, partial(_has_answer, answer_key(example)))
        if earlier is None:
            index.add(example, texts)
        else:
            yield number, ("nearly equal to", earlier)


def _by_meaning(train: Sequence[Example], numbers: Sequence[int], cosine: float) -> dict[int, tuple[str, Example]]:
    """Of the rows with these numbers, those whose prompts mean the same as that of an earlier row that is kept."""
    found: dict[int, tuple[str, Example]] = {}
    for later, earlier in similar_to_earlier([prompt_text(train[number]) for number in numbers], cosine):
        row, other = train[numbers[later]], train[numbers[earlier]]
        if numbers[earlier] not in found and _has_answer(answer_key(row), other):
            found.setdefault(numbers[later], ("by its meaning near", other))
    return found


def _has_answer(answer: Hashable, example: Example) -> bool:
    return answer_key(example) == answer


def _is_preferred(example: Example, earlier: Example) -> bool:
    return _rank(example) > _rank(earlier)


def _rank(example: Example) -> tuple[bool, int]:
    return not example.is_synthetic, {"train": 2, None: 0}.get(example.split, 1)
