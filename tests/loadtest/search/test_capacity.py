"""The search for the highest rate that an SLO allows."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import SweepError
from loadtest.report.slo import SloVerdict, judge, parse_slo
from loadtest.search.capacity import CapacityResult, Measure, RateRun, find_capacity, most_runs
from tests.runs import request, run_of

SLO = parse_slo("ttft=500ms")


def verdict(is_met: bool) -> SloVerdict:
    return judge(run_of(request(ttft_s=0.1 if is_met else 0.9)), SLO)


def server(limit: float) -> Measure:
    """Holds every rate up to a limit."""
    return lambda rate: verdict(rate <= limit)


def flaky(limit: float, bad_runs: set[int]) -> Measure:
    """Holds up to a limit, but fails in the runs with these numbers, whatever the rate."""
    count = iter(range(1000))
    return lambda rate: verdict(next(count) not in bad_runs and rate <= limit)


def rates_of(result: CapacityResult) -> list[float]:
    return [round(run.rate, 3) for run in result.runs]


@pytest.mark.slow
@given(st.floats(1.0, 63.9))
def test_the_capacity_is_found_to_within_the_tolerance(limit: float) -> None:
    result = find_capacity(server(limit), 1, 64, tolerance=0.05, max_runs=99)
    assert result.outcome == "found"
    assert result.holds is not None
    assert result.fails is not None
    assert result.holds <= limit < result.fails <= 1.05 * result.holds
    assert len(result.runs) <= most_runs(1, 64, 0.05)


def test_the_reason_names_both_rates_and_what_failed() -> None:
    result = find_capacity(server(10), 1, 16, tolerance=0.2)
    assert result.reason == "9.51 requests/s hold; at 11.3: ttft p99 900ms, limit 500ms."


def test_a_rate_that_fails_once_and_then_holds_holds() -> None:
    result = find_capacity(flaky(10, bad_runs={3}), 1, 16, tolerance=0.2)
    assert rates_of(result)[:5] == [1, 16, 16, 4, 4]
    assert result.capacity == pytest.approx(9.51, abs=0.01)


def test_a_lowest_rate_that_fails_twice_ends_the_search() -> None:
    result = find_capacity(server(0.5), 1, 16)
    assert (result.outcome, result.capacity, result.fails) == ("below_low", None, 1)
    assert rates_of(result) == [1, 1]
    assert "Even 1 requests/s fail: ttft p99 900ms, limit 500ms. Lower `--low`" in result.reason


def test_a_highest_rate_that_holds_ends_the_search() -> None:
    result = find_capacity(server(99), 1, 16)
    assert (result.outcome, result.capacity, result.fails) == ("above_high", 16, None)
    assert "Raise `--high`" in result.reason


def test_a_search_out_of_runs_says_what_it_knows() -> None:
    result = find_capacity(server(10), 1, 16, tolerance=0.01, max_runs=4)
    assert (result.outcome, result.holds, result.fails) == ("out_of_runs", 4, 16)
    assert "4 requests/s hold, 16 fail" in result.reason


def test_one_failure_is_not_enough_to_say_that_a_rate_fails() -> None:
    result = find_capacity(server(10), 1, 16, max_runs=2)
    assert (result.holds, result.fails) == (1, None)
    assert "no rate failed twice" in result.reason


def test_a_search_is_taken_up_where_it_ended() -> None:
    first = find_capacity(server(10), 1, 16, tolerance=0.05, max_runs=5)
    new: list[RateRun] = []
    second = find_capacity(server(10), 1, 16, tolerance=0.05, runs=first.runs, on_run=new.append)
    assert second == find_capacity(server(10), 1, 16, tolerance=0.05)
    assert tuple(new) == second.runs[5:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((5, 5), "got low 5 and high 5"), ((0, 5), "0 < low"), ((1, 2, 0), "tolerance"), ((1, 2, 0.1, 0), "one run")],
)
def test_impossible_bounds_are_refused(arguments: tuple[float, float], message: str) -> None:
    search: Callable[..., CapacityResult] = find_capacity
    with pytest.raises(SweepError, match=message):
        search(server(1), *arguments)
