"""Metrics of answers that are classes: accuracy, macro F1, and the confusion matrix."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from quality.metrics.item import Item, LeftOut, label

OTHER = "(no class)"
"""An answer that is the expected answer of no item."""


@dataclass(frozen=True)
class Confusion:
    """Counts of (expected, answered) classes; answers that name no expected class are `OTHER`."""

    labels: tuple[str, ...]
    counts: Counter[tuple[str, str]]

    @classmethod
    def of(cls, items: Sequence[Item]) -> "Confusion":
        labels = sorted({label(item.expected) for item in items})
        known = set(labels)
        pairs = ((label(item.expected), label(item.answer)) for item in items)
        return cls(tuple(labels), Counter((wanted, found if found in known else OTHER) for wanted, found in pairs))

    def f1(self, name: str) -> float:
        """Of one class: harmonic mean of precision and recall; 0 if it is never answered rightly."""
        right = self.counts[name, name]
        wanted = sum(count for (expected, _), count in self.counts.items() if expected == name)
        found = sum(count for (_, answered), count in self.counts.items() if answered == name)
        return 2 * right / (wanted + found) if wanted + found else 0.0

    @property
    def macro_f1(self) -> float:
        return fmean(map(self.f1, self.labels)) if self.labels else 0.0


@dataclass(frozen=True)
class Accuracy:
    """Share of answers that name the expected class."""

    name: str = "accuracy"
    kind: Literal["share"] = "share"
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        return [float(label(item.answer) == label(item.expected)) for item in items]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return fmean(scores)


@dataclass(frozen=True)
class MacroF1(Accuracy):
    """Mean of the classes' F1 (as scikit-learn's `f1_score(average="macro")` over the expected classes).

    An item's score is whether its class is named, for comparisons by item.
    """

    name: str = "macro_f1"
    kind: Literal["corpus"] = "corpus"  # type: ignore[assignment]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return Confusion.of(items).macro_f1
