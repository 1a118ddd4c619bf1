"""Rows with the same prompt and different answers."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from config.data import CleaningConfig
from config.dataset import Message
from train.data.cleaning.identity import answer_key, folded, prompt_key
from train.data.examples import Example
from train.data.steps import CONTRADICTIONS, Finding, Step, StepResult, excerpt, finding, listed
from train.errors import DataError

_MAX_ANSWERS = 3


def resolve_contradictions(examples: Sequence[Example], config: CleaningConfig) -> StepResult:
    """Apply `cleaning.contradictions`. Copies count: the majority is that of the rows as they were read.

    Raises:
        DataError: There are some, and the setting is `error`.
    """
    groups: dict[Hashable, list[Example]] = defaultdict(list)
    for example in examples:
        if (key := _question_key(example)) is not None:
            groups[key].append(example)
    conflicting = [group for group in groups.values() if len({_verdict_key(e) for e in group}) > 1]
    findings = tuple(_finding(example, group) for group in conflicting for example in group)
    if findings and config.contradictions == "error":
        raise DataError(
            f"{len(findings)} rows have a question that other rows answer differently:\n{listed(findings)}\n"
            "Correct them, or set `cleaning.contradictions` to drop, majority or keep."
        )
    dropped = {id(e) for group in conflicting for e in _dropped(group, config)}
    kept = tuple(e for e in examples if id(e) not in dropped)
    return StepResult(kept, Step(CONTRADICTIONS, len(examples), len(kept), findings=findings))


def _question_key(example: Example) -> Hashable | None:
    """None: rows of this type cannot contradict each other."""
    if example.type == "prompt_completion":
        return prompt_key(example)
    if example.type == "preference":  # one question may have any number of pairs, but each pair one order
        return prompt_key(example), frozenset((_turns(example.chosen), _turns(example.rejected)))
    if example.type == "unpaired_preference":
        return prompt_key(example), _turns(example.completion)
    return None


def _verdict_key(example: Example) -> Hashable:
    return example.label if example.type == "unpaired_preference" else answer_key(example)


def _turns(turns: Sequence[Message]) -> Hashable:
    return tuple((turn.role, folded(turn.content), repr(turn.tool_calls)) for turn in turns)


def _dropped(group: Sequence[Example], config: CleaningConfig) -> list[Example]:
    if config.contradictions == "keep":
        return []
    counts = Counter(map(_verdict_key, group)).most_common(2)
    if config.contradictions == "majority" and counts[0][1] > counts[1][1]:
        return [e for e in group if _verdict_key(e) != counts[0][0]]
    return list(group)


def _finding(example: Example, group: Sequence[Example]) -> Finding:
    verdict = _verdict_key(example)
    other = next(e for e in group if _verdict_key(e) != verdict)
    answers = list(dict.fromkeys(_shown(e) for e in group))
    more = f" and {len(answers) - _MAX_ANSWERS} more" if len(answers) > _MAX_ANSWERS else ""
    return finding(
        example, f"{len(group)} rows ask this, with the answers {', '.join(answers[:_MAX_ANSWERS])}{more}", other
    )


def _shown(example: Example) -> str:
    if example.type == "unpaired_preference":
        return str(example.label).lower()
    return repr(excerpt(example.answer, 40))
