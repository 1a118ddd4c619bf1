"""Questions that exceed `max_input_chars`: where they are cut, or that they are dropped or refused."""

from collections.abc import Sequence
from dataclasses import replace

from config.data import DataConfig
from train.data.examples import Example
from train.data.steps import LONG_INPUTS, Finding, Step, StepResult, finding, listed
from train.errors import DataError

_GAP = " … "


def cut_long_inputs(examples: Sequence[Example], config: DataConfig) -> StepResult:
    """Apply `max_input_chars` and `cut_long_inputs` to the last user turn.

    Raises:
        DataError: A question is longer, and the setting is `error`.
    """
    most, how = config.max_input_chars, config.cut_long_inputs
    findings: list[Finding] = []
    remaining: list[Example] = []
    for example in examples:
        if most is None or len(example.question) <= most:
            remaining.append(example)
            continue
        findings.append(finding(example, f"{len(example.question)} characters exceed `max_input_chars` {most}"))
        if how in ("left", "middle", "right"):
            remaining.append(_with_question(example, cut_text(example.question, most, how)))
        elif how == "error":
            remaining.append(example)
    if findings and how == "error":
        raise DataError(
            f"{len(findings)} questions are longer than `data.max_input_chars`:\n{listed(findings)}\n"
            "Raise it, or set `data.cut_long_inputs` to middle, left, right or drop."
        )
    num_changed = len(findings) if len(remaining) == len(examples) else 0
    return StepResult(tuple(remaining), Step(LONG_INPUTS, len(examples), len(remaining), num_changed, tuple(findings)))


def cut_text(text: str, max_chars: int, how: str = "right") -> str:
    """At most `max_chars` characters, cut at a word where there is one.

    Args:
        how: `right` keeps the beginning, `left` the end, `middle` both.
    """
    if len(text) <= max_chars:
        return text
    if how == "right":
        return _head(text, max_chars)
    if how == "left" or max_chars <= len(_GAP) + 2:
        return _head(text[::-1], max_chars)[::-1]
    num_head = (max_chars - len(_GAP)) // 2
    return _head(text, num_head) + _GAP + _head(text[::-1], max_chars - len(_GAP) - num_head)[::-1]


def _head(text: str, max_chars: int) -> str:
    """The beginning up to the end of a word."""
    head = text[:max_chars]
    if text[max_chars].isspace():
        return head.rstrip()
    words = head.rsplit(maxsplit=1)
    return head[: len(head) - len(words[-1])].rstrip() if len(words) > 1 else head


def _with_question(example: Example, text: str) -> Example:
    last = max(number for number, turn in enumerate(example.prompt) if turn.role == "user")
    turn = example.prompt[last].model_copy(update={"content": text})
    return replace(example, prompt=(*example.prompt[:last], turn, *example.prompt[last + 1 :]))
