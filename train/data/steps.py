"""What a cleaning step or a check returns: the examples that remain, counts for the manifest, and a finding per row.

A step is a pure function `(examples, config, ...) -> StepResult`. Its counts go into the manifest, its findings into
`findings.jsonl` of the data set folder.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from config.dataset import Origin
from train.data.examples import Example

MAX_TEXT_CHARS = 200
MAX_LISTED = 10
_ELLIPSIS = "…"

# Names of the steps that gates read.
SKIPPED_ROWS = "rows without an answer"
CONTRADICTIONS = "contradictions"
EXACT_DUPLICATES = "exact duplicates"
CONTAMINATION = "contamination"
NEAR_DUPLICATES = "near duplicates"
PERSONAL_DATA = "personal data"
REFUSALS = "refusals"
RENDERED_TEMPLATES = "rendered templates"
LABEL_ERRORS = "label errors"
LONG_INPUTS = "long inputs"
CONTROL_TOKENS = "control tokens"
LENGTHS = "lengths in tokens"
PACKAGED_COPIES = "copies in the package"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row, and why a step dropped, changed or reported it.

    Attributes:
        origin: The row; None for one of a packaged source.
        reason: What was found, as `equal to an earlier row`.
        text: Excerpt of the row, at most `MAX_TEXT_CHARS` characters.
        other: The row that it collides with.
    """

    origin: Origin | None
    reason: str
    text: str = ""
    other: Origin | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a build.

    Attributes:
        name: In the words of the report, as `exact duplicates`.
        num_before: Rows that entered it.
        num_after: Rows that left it; fewer if it drops rows.
        num_changed: Rows that it changed and kept.
        findings: All of them, in the order of the rows.
    """

    name: str
    num_before: int
    num_after: int
    num_changed: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def num_dropped(self) -> int:
        return self.num_before - self.num_after


@dataclass(frozen=True, slots=True)
class StepResult:
    examples: tuple[Example, ...]
    step: Step


def excerpt(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """The beginning of a text, at most `max_chars` characters."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + _ELLIPSIS


def listed(findings: Sequence[Finding]) -> str:
    """Up to `MAX_LISTED` findings, a line each: `  a.jsonl line 3: equal to another row (a.jsonl line 1): 'Hi'`."""
    lines = [f"  {_line(each)}" for each in findings[:MAX_LISTED]]
    if len(findings) > MAX_LISTED:
        lines.append(f"  and {len(findings) - MAX_LISTED} more")
    return "\n".join(lines)


def _line(each: Finding) -> str:
    where = str(each.origin or "a packaged row")
    other = f" ({each.other})" if each.other else ""
    return f"{where}: {each.reason}{other}: {excerpt(each.text, 80)!r}"


def finding(example: Example, reason: str, other: Example | None = None, text: str | None = None) -> Finding:
    """A finding about an example; `text` replaces the excerpt of its question."""
    shown = text if text is not None else example.question or example.text
    return Finding(example.origin, reason, excerpt(shown), other.origin if other else None)


def reported(name: str, examples: Sequence[Example], findings: Iterable[Finding]) -> StepResult:
    """The result of a step that only reports: all examples remain as they are."""
    return StepResult(tuple(examples), Step(name, len(examples), len(examples), 0, tuple(findings)))
