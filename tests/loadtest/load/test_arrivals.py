"""When requests are due."""

from itertools import pairwise
from statistics import mean, pstdev

import pytest

from config.loadtest import (
    Arrival,
    ConstantArrival,
    GammaArrival,
    PoissonArrival,
    RampArrival,
    RateStep,
    StepArrival,
)
from loadtest.load.arrivals import intended_times

KINDS = [
    PoissonArrival(rate=50),
    GammaArrival(kind="gamma", rate=50, burstiness=0.3),
    ConstantArrival(kind="constant", rate=50),
    StepArrival(kind="step", steps=(RateStep(rate=20, duration_s=20), RateStep(rate=80, duration_s=20))),
    RampArrival(kind="ramp", rate_from=10, rate_to=90),
]


def times(arrival: Arrival, duration_s: float = 40, seed: int = 1) -> list[float]:
    return list(intended_times(arrival, duration_s, seed))


def gaps(arrival: Arrival) -> list[float]:
    return [b - a for a, b in pairwise(times(arrival))]


@pytest.mark.parametrize("arrival", KINDS, ids=lambda arrival: arrival.kind)
def test_times_rise_and_end_with_the_run(arrival: Arrival) -> None:
    due = times(arrival)
    assert due == sorted(due)
    assert due[0] > 0
    assert due[-1] < 40


@pytest.mark.parametrize("arrival", KINDS, ids=lambda arrival: arrival.kind)
def test_about_rate_times_duration_requests_are_due(arrival: Arrival) -> None:
    assert len(times(arrival)) == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("arrival", KINDS, ids=lambda arrival: arrival.kind)
def test_the_same_seed_gives_the_same_times(arrival: Arrival) -> None:
    assert times(arrival, seed=7) == times(arrival, seed=7)


@pytest.mark.parametrize("arrival", [KINDS[0], KINDS[1], KINDS[3], KINDS[4]], ids=lambda arrival: arrival.kind)
def test_another_seed_gives_other_times(arrival: Arrival) -> None:
    assert times(arrival, seed=7) != times(arrival, seed=8)


def test_constant_is_a_metronome() -> None:
    assert gaps(ConstantArrival(kind="constant", rate=4)) == pytest.approx([0.25] * 158)


@pytest.mark.parametrize(("burstiness", "variation"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_burstiness_sets_how_uneven_the_gaps_are(burstiness: float, variation: float) -> None:
    found = gaps(GammaArrival(kind="gamma", rate=50, burstiness=burstiness))
    assert pstdev(found) / mean(found) == pytest.approx(variation, rel=0.15)


def test_poisson_gaps_vary_as_much_as_their_mean() -> None:
    found = gaps(PoissonArrival(rate=50))
    assert pstdev(found) / mean(found) == pytest.approx(1.0, rel=0.1)


def test_each_step_has_its_rate_and_the_run_ends_with_the_last() -> None:
    arrival = StepArrival(kind="step", steps=(RateStep(rate=10, duration_s=20), RateStep(rate=100, duration_s=10)))
    due = times(arrival, duration_s=100)
    assert sum(time_s < 20 for time_s in due) == pytest.approx(200, rel=0.2)
    assert sum(time_s >= 20 for time_s in due) == pytest.approx(1000, rel=0.1)
    assert due[-1] < 30


def test_a_ramp_brings_three_quarters_of_its_requests_in_the_second_half() -> None:
    due = times(RampArrival(kind="ramp", rate_from=0.01, rate_to=100))
    assert sum(time_s > 20 for time_s in due) / len(due) == pytest.approx(0.75, abs=0.03)


def test_a_ramp_may_fall() -> None:
    due = times(RampArrival(kind="ramp", rate_from=100, rate_to=0.01))
    assert sum(time_s < 20 for time_s in due) / len(due) == pytest.approx(0.75, abs=0.03)
