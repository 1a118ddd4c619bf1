"""Figures of metrics with intervals, by slice, and differences of two sets of answers to the same items.

Intervals are of 95%: Wilson's for shares, else by bootstrap over the items (`scipy.stats.bootstrap`, BCa for means).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats

from quality.intervals import paired_difference
from quality.metrics.item import Item, LeftOut, Metric
from quality.metrics.judged import Judged, JudgedPairs

MAX_SLICES = 20
"""Of one field, the most frequent values; the rest is not shown."""

Chosen = npt.NDArray[np.intp]

_NUM_RESAMPLES = 1000
_NUM_CORPUS_RESAMPLES = 500
"""Fewer, as each computes the whole metric again."""
_NUM_SWAPS = 200
"""Of a corpus metric's p: enough to tell 0.05."""
_SEED = 13


@dataclass(frozen=True)
class Figure:
    """A metric's value on some items.

    Attributes:
        n: Items with a score.
        left_out: (item's id, reason) of those without one.
        by_slice: Figures of parts of the items, by `field: value`.
    """

    name: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    higher_is_better: bool = True
    left_out: tuple[tuple[str, str], ...] = ()
    by_slice: Mapping[str, "Figure"] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedDifference:
    """The second answers' figure minus the first one's, on items that both have a score for.

    Attributes:
        p: Two-sided, of no difference: exact McNemar for shares, else by swapping both answers to random items.
        only_first: Ids of items that the first answers score better on, best first; `only_second` the other way round.
    """

    name: str
    value: float
    ci_low: float
    ci_high: float
    p: float
    n: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


class ScoredOnce:
    """A metric that scores each item once, whatever the number of figures, slices and comparisons that need the score.

    A slow metric is computed once, and a random custom function gives a consistent score. The items are kept.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._known: dict[int, tuple[Item, float | LeftOut]] = {}
        self.name, self.kind = metric.name, metric.kind
        self.higher_is_better, self.bounds = metric.higher_is_better, metric.bounds

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        new = [item for item in items if id(item) not in self._known]
        for item, score in zip(new, self._metric.scores(new) if new else [], strict=True):
            self._known[id(item)] = item, score
        return [self._known[id(item)][1] for item in items]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return self._metric.value(items, scores)


def scored_once(metrics: Sequence[Metric]) -> list[Metric]:
    """Each metric as `ScoredOnce`; a judge's, whose grades come later, as it is."""
    return [metric if isinstance(metric, Judged | JudgedPairs) else ScoredOnce(metric) for metric in metrics]


def figure_of(metric: Metric, items: Sequence[Item]) -> Figure:
    """The figure of all items, and of each slice."""
    scores = metric.scores(items)
    whole = _figure(metric, items, scores)
    parts: dict[str, Figure] = {}
    for name in sorted({name for item in items for name in item.slices}):
        values = [item.slices.get(name) for item in items]
        frequent = sorted({v for v in values if v is not None}, key=lambda v: (-values.count(v), v))[:MAX_SLICES]
        for value in frequent:
            chosen = [n for n, own in enumerate(values) if own == value]
            part = _figure(metric, [items[n] for n in chosen], [scores[n] for n in chosen])
            parts[f"{name}: {value}"] = part
    return Figure(**{**vars(whole), "by_slice": parts})


def difference_of(metric: Metric, first: Sequence[Item], second: Sequence[Item]) -> PairedDifference:
    """Compare two lists of answers to the same items, paired by id.

    Raises:
        ValueError: They are of different items.
    """
    if [item.id for item in first] != [item.id for item in second]:
        raise ValueError("A paired comparison needs the same items in the same order.")
    pairs = [
        (a, b, x, y)
        for a, b, x, y in zip(first, second, metric.scores(first), metric.scores(second), strict=True)
        if not isinstance(x, LeftOut) and not isinstance(y, LeftOut)
    ]
    ours = [(a, x) for a, _, x, _ in pairs]
    theirs = [(b, y) for _, b, _, y in pairs]
    gains = np.array([y - x for (_, x), (_, y) in zip(ours, theirs, strict=True)])
    sign = 1 if metric.higher_is_better else -1
    order = np.argsort(-np.abs(gains), kind="stable")
    better = (
        [ours[n][0].id for n in order if sign * gains[n] < 0],
        [ours[n][0].id for n in order if sign * gains[n] > 0],
    )
    value, low, high = _paired_interval(metric, ours, theirs)
    p = _p_value(metric, gains) if metric.kind != "corpus" else _p_of_swaps(metric, ours, theirs)
    return PairedDifference(metric.name, value, low, high, p, len(pairs), tuple(better[0]), tuple(better[1]))


def _figure(metric: Metric, items: Sequence[Item], scores: Sequence[float | LeftOut]) -> Figure:
    scored = [(item, score) for item, score in zip(items, scores, strict=True) if not isinstance(score, LeftOut)]
    left_out = tuple(
        (item.id, score.reason) for item, score in zip(items, scores, strict=True) if isinstance(score, LeftOut)
    )
    if not scored:
        low, high = metric.bounds or (float("-inf"), float("inf"))
        return Figure(metric.name, 0.0, low, high, 0, metric.higher_is_better, left_out)
    value = metric.value([item for item, _ in scored], [score for _, score in scored])
    low, high = _interval(metric, scored, value)
    return Figure(metric.name, value, low, high, len(scored), metric.higher_is_better, left_out)


def _interval(metric: Metric, scored: Sequence[tuple[Item, float]], value: float) -> tuple[float, float]:
    values = np.array([score for _, score in scored])
    if metric.kind == "share":
        return _wilson(round(float(values.sum())), len(values))
    if metric.kind == "corpus":
        low, high = _resampled(lambda chosen: _value(metric, scored, chosen), len(scored))
        return min(low, value), max(high, value)
    return _mean_interval(values, metric.bounds)


def _mean_interval(values: npt.NDArray[np.float64], bounds: tuple[float, float] | None) -> tuple[float, float]:
    """BCa of a mean; where all values are equal, which a bootstrap takes for certain, Wilson's width."""
    if np.ptp(values) > 0:
        found = stats.bootstrap(
            (values,), np.mean, n_resamples=_NUM_RESAMPLES, rng=np.random.default_rng(_SEED), vectorized=True
        ).confidence_interval
        return float(found.low), float(found.high)
    value = float(values[0])
    if bounds is None:
        return value, value
    low, high = bounds
    share_low, share_high = _wilson_of_share((value - low) / (high - low), len(values))
    return low + share_low * (high - low), low + share_high * (high - low)


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share."""
    found = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _wilson_of_share(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval at the nearest whole counts around a share."""
    low, _ = _wilson(int(np.floor(share * n + 1e-9)), n)
    _, high = _wilson(int(np.ceil(share * n - 1e-9)), n)
    return low, high


def _paired_interval(
    metric: Metric, first: Sequence[tuple[Item, float]], second: Sequence[tuple[Item, float]]
) -> tuple[float, float, float]:
    n = len(first)
    if n == 0:
        return 0.0, float("-inf"), float("inf")
    if metric.kind == "share":
        only_first = sum(x > y for (_, x), (_, y) in zip(first, second, strict=True))
        only_second = sum(x < y for (_, x), (_, y) in zip(first, second, strict=True))
        low, high = paired_difference(only_first, only_second, n)
        return (only_second - only_first) / n, low, high
    everything = np.arange(n)
    value = _value(metric, second, everything) - _value(metric, first, everything)
    if metric.kind == "mean":
        gains = np.array([y - x for (_, x), (_, y) in zip(first, second, strict=True)])
        if np.ptp(gains) == 0:
            return value, value, value
        low, high = _mean_interval(gains, None)
        return value, low, high
    low, high = _resampled(lambda chosen: _value(metric, second, chosen) - _value(metric, first, chosen), n)
    return value, min(low, value), max(high, value)


def _value(metric: Metric, scored: Sequence[tuple[Item, float]], chosen: Chosen) -> float:
    return metric.value([scored[n][0] for n in chosen], [scored[n][1] for n in chosen])


def _resampled(value_of: Callable[[Chosen], float], n: int) -> tuple[float, float]:
    """Percentile interval over resampled items."""
    rng = np.random.default_rng(_SEED)
    values = [value_of(rng.integers(0, n, n)) for _ in range(_NUM_CORPUS_RESAMPLES)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _p_of_swaps(metric: Metric, first: Sequence[tuple[Item, float]], second: Sequence[tuple[Item, float]]) -> float:
    """By approximate randomization: how often a random swap of both answers gives as large a difference."""
    rng, n = np.random.default_rng(_SEED), len(first)
    if n == 0 or [(item.answer, score) for item, score in first] == [(item.answer, score) for item, score in second]:
        return 1.0
    both = [*first, *second]
    places = np.arange(n)

    def difference(is_swapped: npt.NDArray[np.bool_]) -> float:
        ours, theirs = np.where(is_swapped, places + n, places), np.where(is_swapped, places, places + n)
        return abs(_value(metric, both, theirs) - _value(metric, both, ours))

    seen = difference(np.zeros(n, dtype=bool)) - 1e-12
    as_large = sum(difference(rng.random(n) < 0.5) >= seen for _ in range(_NUM_SWAPS))
    return (1 + as_large) / (1 + _NUM_SWAPS)


def _p_value(metric: Metric, gains: npt.NDArray[np.float64]) -> float:
    changed = gains[gains != 0]
    if not len(changed):
        return 1.0
    if metric.kind == "share":
        return float(stats.binomtest(int((changed > 0).sum()), len(changed)).pvalue)
    signs = np.random.default_rng(_SEED).choice((-1.0, 1.0), size=(_NUM_RESAMPLES, len(changed)))
    means = np.abs((signs * changed).mean(axis=1))
    return float((1 + (means >= abs(changed.mean()) - 1e-12).sum()) / (1 + _NUM_RESAMPLES))
