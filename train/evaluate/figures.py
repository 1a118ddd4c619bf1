"""Figures of base and adapter on the same items, as they go into a version's manifest."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from adapters.scores import Score
from adapters.store.evaluation_records import FigureKind, FigureRecord
from config.domain import DomainConfig
from quality.errors import MetricError
from quality.metrics.figures import Figure, PairedDifference, difference_of, figure_of, scored_once
from quality.metrics.item import Item, Metric
from quality.metrics.table import make_metrics
from quality.scorers import AnswerFormat
from train.errors import RecipeError


def metrics_of(config: DomainConfig) -> list[Metric]:
    """What a version's figures are of; the first decides. A judge is not asked in training.

    Raises:
        RecipeError: A metric lacks what it needs: a file, a package, the domain's refusal.
    """
    try:
        metrics = make_metrics(
            config.evaluation.measured,
            folder=Path(),  # a function's file is named by its whole path, once the domain's YAML is loaded
            answer_format=AnswerFormat(config.answer.json_schema),
            refusal=config.answer.refusal,
        )
    except MetricError as error:
        raise RecipeError(f"`evaluation.metrics`: {error}") from error
    return scored_once(metrics)


def figures_of(metrics: Sequence[Metric], base: Sequence[Item], adapter: Sequence[Item]) -> tuple[FigureRecord, ...]:
    """Each metric on all items, then by slice.

    Args:
        base: The base's answers; `adapter` the version's, to the same questions in the same order.
    """
    return tuple(record for metric in metrics for record in _of_metric(metric, base, adapter))


def figure_record(
    metric: Metric, base: Sequence[Item], adapter: Sequence[Item], kind: FigureKind = "metric", part: str = ""
) -> FigureRecord:
    """One metric on all of the items, without slices."""
    return _record(
        kind, part, figure_of(metric, base), figure_of(metric, adapter), difference_of(metric, base, adapter)
    )


def _of_metric(metric: Metric, base: Sequence[Item], adapter: Sequence[Item]) -> list[FigureRecord]:
    without, with_adapter = figure_of(metric, base), figure_of(metric, adapter)
    records = [_record("metric", "", without, with_adapter, difference_of(metric, base, adapter))]
    for part, own in with_adapter.by_slice.items():
        # Compared whole: a column's name may hold a colon.
        chosen = [n for n, item in enumerate(adapter) if part in {f"{k}: {v}" for k, v in item.slices.items()}]
        difference = difference_of(metric, [base[n] for n in chosen], [adapter[n] for n in chosen])
        records.append(_record("metric", part, without.by_slice[part], own, difference))
    return records


def _record(kind: FigureKind, part: str, base: Figure, adapter: Figure, difference: PairedDifference) -> FigureRecord:
    return FigureRecord(
        kind=kind,
        metric=adapter.name,
        part=part,
        adapter=_score(adapter),
        base=_score(base) if base.n else None,
        difference=_score(difference) if difference.n else None,
        p=difference.p if difference.n else None,
        higher_is_better=adapter.higher_is_better,
        num_left_out=len(adapter.left_out),
    )


def _score(figure: Figure | PairedDifference) -> Score:
    if not isfinite(figure.ci_low):  # no item has a score, and the metric no bounds
        return Score(value=figure.value, ci_low=figure.value, ci_high=figure.value, n=figure.n)
    return Score(value=figure.value, ci_low=figure.ci_low, ci_high=figure.ci_high, n=figure.n)
