"""Confidence intervals of shares."""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist


@dataclass(frozen=True)
class Share:
    """A share with its interval, all 0 to 1; the fields of a manifest's `Score`."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share; (0, 1) if n is 0.

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


def share_of(successes: int, n: int) -> Share:
    """The share with its 95% Wilson interval; value 0 when n is 0.

    Raises:
        ValueError: Not 0 <= successes <= n.
    """
    ci_low, ci_high = wilson_interval(successes, n)
    return Share(successes / n if n else 0.0, ci_low, ci_high, n)
