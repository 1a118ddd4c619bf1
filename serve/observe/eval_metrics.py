"""Metrics of the evaluation before publication: every figure of the versions that are resident."""

import logging
from collections.abc import Mapping, Sequence

from adapters.reference import Target
from adapters.store.evaluation_records import FigureRecord
from serve.observe.series import VersionFamilies, labels_of

logger = logging.getLogger(__name__)

_MAX_PER_VERSION = 60
_MAX_FIGURES = 2000
_MAX_SLICE_CHARS = 80


class EvalMetrics:
    """Figures by `metric` and `slice`, as their keys name them: `robustness[typos]` has metric `robustness`.

    Slices are values of the domain's data, so their number is bounded: a version shows its first figures, those of all
    questions before those of parts, and all versions together at most `most`.
    """

    def __init__(self, families: VersionFamilies, most: int = _MAX_FIGURES) -> None:
        names = ("metric", "slice")
        self._score = families.gauge(
            "lorikeet_eval_score", "Figure of the version's evaluation at publication.", *names
        )
        self._low = families.gauge("lorikeet_eval_score_ci_low", "Lower bound of its 95% interval.", *names)
        self._high = families.gauge("lorikeet_eval_score_ci_high", "Upper bound of its 95% interval.", *names)
        self._base = families.gauge("lorikeet_eval_base_score", "The base's figure on the same items.", *names)
        self._most = most
        self._num_shown: dict[Target, int] = {}
        self._told: set[Target] = set()

    def show(self, target: Target, figures: Sequence[FigureRecord]) -> None:
        """Export a version's figures, in the place of those that it had."""
        self.hide(target)
        by_labels = _by_labels(figures)
        num_free = max(0, self._most - sum(self._num_shown.values()))
        shown = list(by_labels.items())[: min(_MAX_PER_VERSION, num_free)]
        for more, figure in shown:
            labels = (*labels_of(target), *more)
            self._score.of(*labels).set(figure.adapter.value)
            self._low.of(*labels).set(figure.adapter.ci_low)
            self._high.of(*labels).set(figure.adapter.ci_high)
            if figure.base is not None:
                self._base.of(*labels).set(figure.base.value)
        self._num_shown[target] = len(shown)
        if len(shown) < len(by_labels) and target not in self._told:
            self._told.add(target)
            logger.warning(
                "%d of %d figures of %s are in the metrics: at most %d of a version and %d of all; see its manifest.",
                len(shown),
                len(by_labels),
                target,
                _MAX_PER_VERSION,
                self._most,
            )

    def hide(self, target: Target) -> None:
        """Drop a version's figures: it is no longer resident."""
        if self._num_shown.pop(target, 0):
            for family in (self._score, self._low, self._high, self._base):
                family.retire(labels_of(target))


def _by_labels(figures: Sequence[FigureRecord]) -> Mapping[tuple[str, str], FigureRecord]:
    """By `metric` and `slice`; of two with the same labels the first counts."""
    by_labels: dict[tuple[str, str], FigureRecord] = {}
    for figure in sorted(figures, key=_rank):
        labels = figure.key.partition("[")[0], figure.part[:_MAX_SLICE_CHARS]
        by_labels.setdefault(labels, figure)
    return by_labels


def _rank(figure: FigureRecord) -> int:
    """Figures of all questions, then robustness and forgetting, then slices; otherwise as they are."""
    if not figure.part:
        return 0
    return 2 if figure.kind == "metric" else 1
