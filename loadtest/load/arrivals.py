"""Arrival times: a rate over time and random gaps. Pure: the same seed gives the same times.

Every process is unit gaps (mean 1) laid on a clock that runs at the rate: the next request is due when the integral of
the rate has grown by the next gap. So bursts, steps and ramps are one function.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

from config.loadtest import (
    Arrival,
    ConstantArrival,
    GammaArrival,
    PoissonArrival,
    RampArrival,
    StepArrival,
)


@dataclass(frozen=True)
class Segment:
    """A time span with a linearly changing rate."""

    duration_s: float
    rate_from: float
    rate_to: float

    @property
    def num_expected(self) -> float:
        """Expected number of requests in the segment."""
        return self.duration_s * (self.rate_from + self.rate_to) / 2

    def time_of(self, num_due: float) -> float:
        """Seconds into the segment at which so many are due on average.

        The root of rate_from * t + slope * t**2 / 2 = num_due, in the form that a slope of zero does not break.
        """
        slope = (self.rate_to - self.rate_from) / self.duration_s
        return 2 * num_due / (self.rate_from + sqrt(self.rate_from**2 + 2 * slope * num_due))


def intended_times(arrival: Arrival, duration_s: float, seed: int) -> Iterator[float]:
    """Times at which requests are due, in seconds since the start, rising, before `duration_s`.

    A trace brings its own times, and a closed loop has none: they are no input here.
    """
    gap = _unit_gap(arrival, random.Random(f"arrivals {seed}"))
    start_s, num_due = 0.0, gap()
    for segment in _segments(arrival, duration_s):
        while num_due < segment.num_expected:
            due_s = start_s + segment.time_of(num_due)
            if due_s >= duration_s:
                return
            yield due_s
            num_due += gap()
        num_due -= segment.num_expected
        start_s += segment.duration_s


def _segments(arrival: Arrival, duration_s: float) -> tuple[Segment, ...]:
    if isinstance(arrival, StepArrival):
        return tuple(Segment(step.duration_s, step.rate, step.rate) for step in arrival.steps)
    if isinstance(arrival, RampArrival):
        return (Segment(duration_s, arrival.rate_from, arrival.rate_to),)
    assert isinstance(arrival, PoissonArrival | GammaArrival | ConstantArrival), arrival
    return (Segment(duration_s, arrival.rate, arrival.rate),)


def _unit_gap(arrival: Arrival, rng: random.Random) -> Callable[[], float]:
    """Gaps of mean 1."""
    if isinstance(arrival, ConstantArrival):
        return lambda: 1.0
    if isinstance(arrival, GammaArrival):
        return lambda: rng.gammavariate(arrival.burstiness, 1 / arrival.burstiness)
    return lambda: rng.expovariate(1.0)
