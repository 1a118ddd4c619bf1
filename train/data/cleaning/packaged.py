"""Copies in the packaged sources: lists of terms and notices, in which case and punctuation mean nothing."""

from collections import defaultdict
from collections.abc import Sequence

from train.data.cleaning.text import normalize
from train.data.examples import Example
from train.data.steps import PACKAGED_COPIES, Finding, Step, StepResult, finding


def drop_packaged_copies(examples: Sequence[Example]) -> StepResult:
    """Keep the first of texts with equal words, one pinned to training if there is one; none if answers differ."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[normalize(example.question)].append(example)
    kept: list[Example] = []
    findings: list[Finding] = []
    for group in groups.values():
        if len({example.answer for example in group}) > 1:
            findings += [finding(e, "texts with these words have several answers") for e in group]
            continue
        chosen = next((e for e in group if e.split == "train"), group[0])
        kept.append(chosen)
        findings += [finding(e, "equal words as another text", chosen) for e in group if e is not chosen]
    return StepResult(tuple(kept), Step(PACKAGED_COPIES, len(examples), len(kept), findings=tuple(findings)))
