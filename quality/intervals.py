"""The interval of a difference between two shares."""

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
