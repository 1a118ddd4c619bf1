"""Interleaved measurement of baseline and candidate, so that slow changes of the machine affect both equally."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import TypeVar

from loadtest.report.bootstrap import Interval, median_interval

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Alternated:
    """Medians of all rounds. The ratio is the median of each round's candidate / baseline."""

    baseline: float
    candidate: float
    ratio: float
    ratio_interval: Interval
    rounds: int


def alternate(
    baseline: Callable[[], float],
    candidate: Callable[[], float],
    rounds: int = 5,
    pause_s: float = 1.0,
    *,
    seed: int = 13,
    sleep: Callable[[float], None] = time.sleep,
) -> Alternated:
    """Measure one non-zero figure, interleaved; see `measure_pairs`.

    Raises:
        ValueError: There are no rounds, or a baseline was 0.
    """
    return compare_pairs(measure_pairs(baseline, candidate, rounds, pause_s, sleep=sleep), seed)


def measure_pairs(
    baseline: Callable[[], Measured],
    candidate: Callable[[], Measured],
    rounds: int,
    pause_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> list[tuple[Measured, Measured]]:
    """Baseline and candidate of each round; the first one alternates by round.

    Args:
        pause_s: Rest before each measurement: an idle engine spins for a second.

    Raises:
        ValueError: There are no rounds.
    """
    if rounds < 1:
        raise ValueError(f"Give at least one round; got {rounds}.")
    return [_measure_pair(baseline, candidate, number % 2 == 1, pause_s, sleep) for number in range(rounds)]


def compare_pairs(pairs: Sequence[tuple[float, float]], seed: int = 13) -> Alternated:
    """One figure of each round's baseline and candidate.

    Raises:
        ValueError: A baseline was 0.
    """
    if any(first == 0 for first, _ in pairs):
        raise ValueError("The ratio to a baseline of 0 is undefined. Measure a quantity that is not 0.")
    ratios = [second / first for first, second in pairs]
    return Alternated(
        baseline=median(first for first, _ in pairs),
        candidate=median(second for _, second in pairs),
        ratio=median(ratios),
        ratio_interval=median_interval(ratios, seed),
        rounds=len(pairs),
    )


def with_next_seed(measure: Callable[[int], Measured], first_seed: int) -> Callable[[], Measured]:
    """Measure with other prompts each time, or prefix caches would answer.

    Two that start with the same seed ask the same in a round.
    """
    seeds = count(first_seed)
    return lambda: measure(next(seeds))


def _measure_pair(
    baseline: Callable[[], Measured],
    candidate: Callable[[], Measured],
    is_swapped: bool,
    pause_s: float,
    sleep: Callable[[float], None],
) -> tuple[Measured, Measured]:
    """Baseline and candidate, in this order whichever was measured first."""
    values = []
    for measure in (candidate, baseline) if is_swapped else (baseline, candidate):
        sleep(pause_s)
        values.append(measure())
    first, second = reversed(values) if is_swapped else values
    return first, second
