"""Languages of questions and of answers, by py3langid; texts that are too short or too mixed are not told."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from train.data.examples import Example
from train.data.steps import Finding, finding

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_MAX_CHARS = 120
"""A language is told from a text's beginning: reading all of it takes ten times as long."""

_MIN_CONFIDENCE = 0.5
_MIN_CONFIDENCE_OF_A_FINDING = 0.8


@dataclass(frozen=True)
class Languages:
    """Rows by language (ISO 639-1), the most frequent first; `num_unknown` rows are too short to tell."""

    part: Literal["question", "answer"]
    counts: dict[str, int]
    num_unknown: int
    findings: tuple[Finding, ...]

    @property
    def majority(self) -> str | None:
        return next(iter(self.counts), None)


def check_languages(
    examples: Sequence[Example], part: Literal["question", "answer"], advance: Callable[[], None] = lambda: None
) -> Languages:
    """Count languages; rows in another than the majority's are findings, where the model is sure of it.

    Args:
        advance: Called for each example.
    """
    texts = [(example.question or example.text) if part == "question" else example.answer for example in examples]
    told: dict[str, tuple[str, float]] = {}
    for text in texts:
        if text not in told:
            told[text] = identify(text)
        advance()
    counts = dict(Counter(told[text][0] for text in texts if told[text][1] >= _MIN_CONFIDENCE).most_common())
    majority = next(iter(counts), None)
    findings = tuple(
        finding(example, f"{part} in {told[text][0]!r}, most are in {majority!r}", text=text)
        for example, text in zip(examples, texts, strict=True)
        if told[text][0] != majority and told[text][1] >= _MIN_CONFIDENCE_OF_A_FINDING
    )
    return Languages(part, counts, len(examples) - sum(counts.values()), findings)


def identify(text: str) -> tuple[str, float]:
    """The most probable language of a text, and its probability."""
    language, confidence = _identifier().classify(text[:_MAX_CHARS])
    return str(language), float(confidence)


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
