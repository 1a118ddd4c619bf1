"""Gains of an objective's scores with 95% intervals, paired by row."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev

from scipy import stats

from adapters.scores import Score, score_of
from adapters.store.evaluation_records import ObjectiveScore
from quality.intervals import paired_difference


def above_chance(right: Sequence[bool]) -> ObjectiveScore:
    """A share beside 0.5, what a model without a preference reaches."""
    own, n = score_of(sum(right), len(right)), len(right)
    gain = Score(value=own.value - 0.5, ci_low=own.ci_low - 0.5, ci_high=own.ci_high - 0.5, n=n)
    return ObjectiveScore(base=Score(value=0.5, ci_low=0.5, ci_high=0.5, n=n), adapter=own, paired_gain=gain)


def paired_share(before: Sequence[bool], after: Sequence[bool]) -> Score | None:
    """By how much a share rises; None: no row."""
    n = len(after)
    if n == 0:
        return None
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    won = sum(b and not a for a, b in zip(before, after, strict=True))
    low, high = paired_difference(lost, won, n)
    return Score(value=(won - lost) / n, ci_low=low, ci_high=high, n=n)


def paired_mean(before: Sequence[float], after: Sequence[float]) -> Score | None:
    """By how much a mean rises, by the t distribution; None: fewer than two rows."""
    n = len(after)
    if n < 2:
        return None
    gains = [b - a for a, b in zip(before, after, strict=True)]
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(gains) / sqrt(n)
    return Score(value=fmean(gains), ci_low=fmean(gains) - half, ci_high=fmean(gains) + half, n=n)
