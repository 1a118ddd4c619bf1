"""The held-out questions one by one, as `evaluation.jsonl` keeps them."""

import logging
from collections.abc import Sequence
from math import isfinite

from quality.evaluated import EvaluatedItem, ScoredPair, cut
from quality.metrics.item import Item, LeftOut, Metric

logger = logging.getLogger(__name__)


def evaluated_items(
    metrics: Sequence[Metric], base: Sequence[Item], adapter: Sequence[Item], *, is_published: bool
) -> tuple[EvaluatedItem, ...]:
    """Both answers to each question with their scores.

    Args:
        is_published: False: ids and scores alone, as texts and classes are the domain's own.
    """
    scores = {metric.name: (metric.scores(base), metric.scores(adapter)) for metric in metrics}
    for name, (_, own) in scores.items():
        _tell_left_out(name, adapter, own)
    return tuple(_item(n, base, adapter, scores, is_published=is_published) for n in range(len(adapter)))


Scores = dict[str, tuple[list[float | LeftOut], list[float | LeftOut]]]


def _item(
    n: int, base: Sequence[Item], adapter: Sequence[Item], scores: Scores, *, is_published: bool
) -> EvaluatedItem:
    own = adapter[n]
    pairs = {name: (without[n], with_adapter[n]) for name, (without, with_adapter) in scores.items()}
    texts = {
        "question": cut(own.question),
        "expected": cut(own.expected),
        "base": cut(base[n].answer),
        "adapter": cut(own.answer),
        "slices": {name: cut(value) for name, value in own.slices.items()},
        "left_out": {name: cut(why) for name, pair in pairs.items() if (why := _reason(*pair))},
    }
    return EvaluatedItem(
        id=own.id,
        scores={name: ScoredPair(base=_value(a), adapter=_value(b)) for name, (a, b) in pairs.items()},
        **texts if is_published else {},
    )


def _value(score: float | LeftOut) -> float | None:
    return None if isinstance(score, LeftOut) or not isfinite(score) else score


def _reason(*scores: float | LeftOut) -> str:
    return next((score.reason for score in scores if isinstance(score, LeftOut)), "")


def _tell_left_out(metric: str, items: Sequence[Item], scores: Sequence[float | LeftOut]) -> None:
    """One line: how many a metric could not score, with the first."""
    left_out = [
        (item.id, score.reason) for item, score in zip(items, scores, strict=True) if isinstance(score, LeftOut)
    ]
    if left_out:
        first, reason = left_out[0]
        logger.warning(
            "%s: %d of %d questions are left out, the first is %s: %s", metric, len(left_out), len(items), first, reason
        )
