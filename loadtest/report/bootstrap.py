"""Seeded bootstrap confidence intervals. Pure functions.

Requests that follow each other share a queue, so their latencies are alike. Resampling them one by one would call
chance a difference; here blocks of neighbours are drawn (circular block bootstrap), each about n^(1/3) long.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def block_weights(n: int, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES) -> NDArray[np.intp]:
    """How often each of n neighbours was drawn, (num_resamples, n); each row sums to n."""
    length = max(1, round(n ** (1 / 3)))
    starts = rng.integers(n, size=(num_resamples, -(-n // length)))
    drawn = ((starts[:, :, None] + np.arange(length)) % n).reshape(num_resamples, -1)[:, :n]
    places = drawn + n * np.arange(num_resamples)[:, None]
    return np.bincount(places.ravel(), minlength=n * num_resamples).reshape(num_resamples, n)


def resampled_percentiles(groups: Sequence[Sequence[float]], qs: Sequence[float], rng: np.random.Generator) -> Floats:
    """Percentiles over NUM_RESAMPLES draws of groups, a group being the values of one request; (draws, qs).

    A percentile here is the smallest value that at least q percent of the draw do not exceed: with thousands of values
    it does not differ from the interpolated one, and draws need no sorting.
    """
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    values = np.concatenate([np.asarray(group, dtype=float) for group in groups])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    weights = block_weights(len(groups), rng)
    return np.stack([_weighted_percentiles(values, row[owners], qs) for row in weights])


def resampled_rates(counts: Sequence[float], duration_s: float, rng: np.random.Generator) -> Floats:
    """A rate per second over NUM_RESAMPLES draws of the stretches of a run; `counts` holds what each stretch had."""
    values = np.asarray(counts, dtype=float)
    rates: Floats = block_weights(len(values), rng) @ values / duration_s
    return rates


def interval_of(draws: Floats, confidence: float = CONFIDENCE) -> Interval:
    """The middle of the draws that are numbers, e.g. 95% of them; unbounded where there are none."""
    known = draws[np.isfinite(draws)]
    if not known.size:
        return Interval(0.0, float("inf"))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(known, (tail, 100 - tail))
    return Interval(float(low), float(high))


def median_interval(values: Sequence[float], seed: int, confidence: float = CONFIDENCE) -> Interval:
    """Bootstrap interval of the median.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("The median of an empty list is undefined; check for it first.")
    rng = np.random.default_rng(seed)
    return interval_of(resampled_percentiles([(value,) for value in values], (50,), rng), confidence)


def _weighted_percentiles(values: Floats, weights: NDArray[np.intp], qs: Sequence[float]) -> Floats:
    cumulative = np.cumsum(weights)
    chosen: Floats = values[np.searchsorted(cumulative, np.asarray(qs) / 100 * cumulative[-1])]
    return chosen
