"""Two things measured by turns, so that a machine that warms up, or has a bad minute, treats both alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from loadtest.bootstrap import Interval, median_interval

Measurement = Callable[[], float]
"""Measures once; in any unit, but never 0."""


@dataclass(frozen=True)
class Alternated:
    """Medians of all rounds. The ratio is the median of each round's candidate / baseline."""

    baseline: float
    candidate: float
    ratio: float
    ratio_interval: Interval
    rounds: int


def alternate(
    baseline: Measurement,
    candidate: Measurement,
    rounds: int = 5,
    pause_s: float = 1.0,
    *,
    seed: int = 13,
    sleep: Callable[[float], None] = time.sleep,
) -> Alternated:
    """Measure by turns, and which one goes first changes from round to round.

    Args:
        pause_s: Rest before each measurement: an idle engine spins for a second.

    Raises:
        ValueError: There are no rounds, or a baseline was 0.
    """
    if rounds < 1:
        raise ValueError(f"Give at least one round; got {rounds}.")
    pairs = [_measure_pair(baseline, candidate, number % 2 == 1, pause_s, sleep) for number in range(rounds)]
    if any(first == 0 for first, _ in pairs):
        raise ValueError("A baseline of 0 has no ratio. Measure something that takes place.")
    ratios = [second / first for first, second in pairs]
    return Alternated(
        baseline=median(first for first, _ in pairs),
        candidate=median(second for _, second in pairs),
        ratio=median(ratios),
        ratio_interval=median_interval(ratios, seed),
        rounds=rounds,
    )


def _measure_pair(
    baseline: Measurement, candidate: Measurement, is_swapped: bool, pause_s: float, sleep: Callable[[float], None]
) -> tuple[float, float]:
    """Baseline and candidate, in this order whichever was measured first."""
    values = []
    for measure in (candidate, baseline) if is_swapped else (baseline, candidate):
        sleep(pause_s)
        values.append(measure())
    first, second = reversed(values) if is_swapped else values
    return first, second
