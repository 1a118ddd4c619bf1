"""The figure of perturbed questions beside that of the same questions as they stand."""

from collections.abc import Sequence
from dataclasses import dataclass

from quality.metrics.figures import Figure, PairedDifference, difference_of, figure_of
from quality.metrics.item import Item, LeftOut, Metric


@dataclass(frozen=True)
class PerturbationFigure:
    """A metric on the copies of one perturbation.

    Attributes:
        plain: On the same questions unperturbed; None: the copies are other questions, so nothing is compared.
        difference: Perturbed minus unperturbed, paired by question.
        worst: Ids of the copies that lose most against their question; of other questions, with the lowest scores.
    """

    figure: Figure
    plain: Figure | None
    difference: PairedDifference | None
    worst: tuple[str, ...]


def perturbation_figure(metric: Metric, perturbed: Sequence[Item], plain: Sequence[Item] | None) -> PerturbationFigure:
    """Compare the answers to perturbed questions with those to the questions as they stand, in the same order."""
    figure = figure_of(metric, perturbed)
    if plain is None:
        return PerturbationFigure(figure, None, None, _lowest(metric, perturbed))
    difference = difference_of(metric, plain, perturbed)
    return PerturbationFigure(figure, figure_of(metric, plain), difference, difference.only_first)


def _lowest(metric: Metric, items: Sequence[Item]) -> tuple[str, ...]:
    """Those that score worse than the best possible, worst first."""
    sign = 1 if metric.higher_is_better else -1
    scores = metric.scores(items)
    scored = [(sign * s, item.id) for item, s in zip(items, scores, strict=True) if not isinstance(s, LeftOut)]
    best = sign * metric.bounds[1 if metric.higher_is_better else 0] if metric.bounds else float("inf")
    return tuple(name for score, name in sorted(scored, key=lambda pair: pair[0]) if score < best)
