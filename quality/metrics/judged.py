"""Metrics of a judge's grades and preferences. Whoever can reach the judge fills them in before items are scored."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from quality.agreement import Agreement
from quality.judge import Choice, Scale
from quality.metrics.answers import exact_match
from quality.metrics.item import Item, Kind, LeftOut, Metric
from quality.metrics.settings import JudgeMetric, PairwiseMetric

NOT_ASKED = LeftOut("the judge was not asked")
SCORES: dict[Choice, float] = {"first": 0.0, "tie": 0.5, "second": 1.0}

Shown = tuple[str, str, str]
"""Prompt, expected answer and answer: what a grade is of, whichever model answered."""


@dataclass
class Judged:
    """Mean of grades, as 0 to 1.

    Attributes:
        found: Grades by what the judge was shown, or why a grade is missing.
        judge: Name of the model that was asked; "" until then.
        agreement: With people's labels; None: not known.
        num_people: Answers that people have graded, and the judge was shown.
    """

    settings: JudgeMetric
    found: dict[Shown, float | LeftOut] = field(default_factory=dict)
    judge: str = ""
    agreement: Agreement | None = None
    num_people: int = 0
    name: str = "judge"
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)

    @property
    def kind(self) -> Kind:
        return "share" if self.scale == Scale(0, 1) else "mean"

    @property
    def scale(self) -> Scale:
        lowest, highest = map(int, self.settings.scale.split("-"))
        return Scale(lowest, highest)

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        return [self.found.get(shown(item), NOT_ASKED) for item in items]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return fmean(scores)


@dataclass
class JudgedPairs:
    """Preferences to the answers of a first model: 1, 0, or 0.5 for a tie, which the first model has by definition.

    Attributes:
        firsts: The first model's answers, by item.
        found: Preferences by the first model's answer and what is compared with it.
    """

    settings: PairwiseMetric
    firsts: dict[str, str] = field(default_factory=dict)
    found: dict[tuple[str, Shown], float | LeftOut] = field(default_factory=dict)
    judge: str = ""
    agreement: Agreement | None = None
    num_people: int = 0
    name: str = "judge_pairwise"
    kind: Literal["mean"] = "mean"
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        return [self._score(item) for item in items]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return fmean(scores)

    def _score(self, item: Item) -> float | LeftOut:
        first = self.firsts.get(item.id)
        if first is None:
            return NOT_ASKED
        return SCORES["tie"] if item.whole_answer == first else self.found.get((first, shown(item)), NOT_ASKED)


JudgeOf = Judged | JudgedPairs


def shown(item: Item) -> Shown:
    return item.prompt, item.whole_expected, item.whole_answer


def without_judges(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that do not need a judge; exact match if all of them do."""
    return [metric for metric in metrics if not isinstance(metric, Judged | JudgedPairs)] or [exact_match()]
