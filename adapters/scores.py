"""Scores with confidence intervals: how much a count of successes really says."""

from collections.abc import Sequence
from math import fsum, sqrt
from statistics import NormalDist, stdev

from pydantic import BaseModel, ConfigDict


class Score(BaseModel):
    """A share with its 95% Wilson interval, all 0 to 1; or a mean with its own 95% interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    ci_low: float
    ci_high: float
    n: int


def score_of(successes: int, n: int) -> Score:
    """The share with its 95% Wilson interval; value 0 when n is 0.

    Raises:
        ValueError: Not 0 <= successes <= n.
    """
    ci_low, ci_high = wilson_interval(successes, n)
    return Score(value=successes / n if n else 0.0, ci_low=ci_low, ci_high=ci_high, n=n)


def mean_score(values: Sequence[float]) -> Score:
    """The mean with its 95% interval, by the normal distribution; the mean alone for fewer than two values."""
    n = len(values)
    mean = fsum(values) / n if n else 0.0
    half = NormalDist().inv_cdf(0.975) * stdev(values) / sqrt(n) if n > 1 else 0.0
    return Score(value=mean, ci_low=mean - half, ci_high=mean + half, n=n)


def bounded_score(values: Sequence[float]) -> Score:
    """The mean of values from 0 to 1, with Wilson's interval of as many coin flips: no values vary more than those."""
    flips = score_of(min(round(fsum(values)), len(values)), len(values))
    mean = fsum(values) / len(values) if values else 0.0
    return Score(value=mean, ci_low=min(flips.ci_low, mean), ci_high=max(flips.ci_high, mean), n=len(values))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share; (0, 1) when nothing was counted.

    Raises:
        ValueError: Not 0 <= successes <= n, or confidence outside (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n; got {successes} of {n}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}.")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not push an end past the share itself (0 of n, n of n).
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
