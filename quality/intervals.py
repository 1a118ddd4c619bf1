"""Intervals of differences: of two shares of the same things, and of two figures of different things."""

from math import sqrt
from statistics import NormalDist


def paired_difference(only_first: int, only_second: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the second share minus the first one, of n things that both looked at (Agresti and Min, 2005).

    Args:
        only_first: Successes of the first that the second missed; `only_second` the other way round.

    Raises:
        ValueError: More of them than n, a negative number, or confidence outside (0, 1).
    """
    if min(only_first, only_second) < 0 or only_first + only_second > n:
        raise ValueError(f"{only_first} and {only_second} must be at least 0 and sum to at most {n}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    first, second, total = only_first + 0.5, only_second + 0.5, n + 2  # half a pair more in each of the four cells
    difference = (second - first) / total
    half = z * sqrt(first + second - (second - first) ** 2 / total) / total
    return max(-1.0, difference - half), min(1.0, difference + half)


def unpaired_difference(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float, float]:
    """The second figure minus the first one, which are of different things, with an interval from theirs.

    For shares with Wilson's intervals it is Newcombe's (1998, method 10); for others the same formula (MOVER).

    Args:
        first: Value and both ends of its interval; `second` likewise.
    """
    value, low, high = first
    other, other_low, other_high = second
    difference = other - value
    below = sqrt((other - other_low) ** 2 + (high - value) ** 2)
    above = sqrt((other_high - other) ** 2 + (value - low) ** 2)
    return difference, difference - below, difference + above
