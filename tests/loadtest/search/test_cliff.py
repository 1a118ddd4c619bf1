"""The cliff: at how many adapters in use a server's first tokens get late, and which setting is to blame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import SweepError
from loadtest.search.cliff import Cliff, CliffPoint, find_cliff, point_of, recommend
from tests.runs import request, run_of


def point(
    working_set: int, ttft_s: float | None, *, cold: float = 0.0, wide: float = 0.1, **changes: int
) -> CliffPoint:
    """A point whose interval reaches `wide` (a share) to either side of its p50."""
    setting = {"max_loras": 2, "max_cpu_loras": 4} | changes
    return CliffPoint(
        **setting,
        working_set=working_set,
        num_requests=50,
        ttft_p50_s=ttft_s,
        ttft_p50_low_s=None if ttft_s is None else ttft_s * (1 - wide),
        ttft_p50_high_s=None if ttft_s is None else ttft_s * (1 + wide),
        ttft_p99_s=ttft_s,
        cold_share=cold,
        error_share=0.0,
        output_tokens_per_s=100.0,
    )


def cliff_of(*ttfts_s: float, cold: float = 0.0, **changes: int) -> Cliff:
    """Working sets 1, 2, 3…"""
    return find_cliff([point(n, ttft_s, cold=cold, **changes) for n, ttft_s in enumerate(ttfts_s, start=1)])


def test_the_cliff_is_the_first_point_surely_above_twice_the_plateau() -> None:
    cliff = cliff_of(0.20, 0.22, 0.25, 0.24, 0.90, 1.50, cold=0.4)
    assert (cliff.carries, cliff.breaks_at) == (4, 5)
    assert cliff.plateau_s == pytest.approx(0.23)


def test_a_wide_interval_is_no_cliff() -> None:
    noisy = [point(1, 0.2), point(2, 0.5, wide=0.5)]
    assert find_cliff(noisy).breaks_at is None


def test_what_may_be_a_cliff_is_not_said_to_be_carried() -> None:
    cliff = find_cliff([point(4, 0.2), point(6, 0.6, wide=0.6, cold=0.35)])
    assert (cliff.carries, cliff.breaks_at, cliff.cause) == (4, None, "max_cpu_loras")
    assert "at 6 it is 600 ms, but its 95% interval (240 ms to 960 ms) is too wide to be sure" in cliff.reason
    assert recommend([cliff]).max_cpu_loras == 6


def test_a_handful_of_requests_is_no_cliff_and_is_called_little() -> None:
    few = point(2, 0.9).model_copy(update={"num_requests": 9})
    cliff = find_cliff([point(1, 0.2), few])
    assert cliff.breaks_at is None
    assert cliff.reason.endswith("1 of the points had fewer than 10 requests and are unreliable: measure longer.")


def test_points_may_come_in_any_order() -> None:
    points = [point(5, 0.9), point(1, 0.2), point(4, 0.2)]
    assert (find_cliff(points).carries, find_cliff(points).breaks_at) == (4, 5)


def test_beyond_host_memory_cold_loads_are_to_blame() -> None:
    cliff = cliff_of(0.2, 0.2, 0.2, 0.2, 1.4, cold=0.42)
    assert cliff.cause == "max_cpu_loras"
    assert cliff.reason == (
        "TTFT p50 stays near 200 ms up to 4 adapters and is 1400 ms at 5: 42% of the requests wait for their adapter "
        "to be loaded and checked again, because host memory keeps 4 (max_cpu_loras)."
    )


def test_beyond_the_slots_waiting_is_to_blame() -> None:
    cliff = cliff_of(0.2, 0.2, 0.9)
    assert (cliff.cause, cliff.breaks_at) == ("max_loras", 3)
    assert "one of 2 slots (max_loras)" in cliff.reason


def test_where_all_adapters_fit_the_load_is_to_blame() -> None:
    assert cliff_of(0.2, 0.9).cause == "load"


def test_without_a_cliff_the_largest_working_set_is_carried() -> None:
    cliff = cliff_of(0.2, 0.21, 0.22)
    assert (cliff.carries, cliff.breaks_at, cliff.cause) == (3, None, "none")
    assert cliff.reason == "TTFT p50 stays near 210 ms up to 3 adapters: no cliff."


def test_a_point_at_which_nothing_was_answered_is_beyond_the_cliff() -> None:
    cliff = find_cliff([point(1, 0.2), point(2, None)])
    assert (cliff.carries, cliff.breaks_at) == (1, 2)
    assert "no request ended well" in cliff.reason


def test_a_server_that_answers_nothing_carries_nothing() -> None:
    cliff = find_cliff([point(1, None)])
    assert (cliff.carries, cliff.plateau_s) == (None, None)


@given(st.lists(st.floats(0.1, 0.19), min_size=1, max_size=12))
def test_noise_below_the_factor_is_no_cliff(ttfts_s: list[float]) -> None:
    assert cliff_of(*ttfts_s).breaks_at is None


def test_points_of_two_settings_have_no_common_cliff() -> None:
    with pytest.raises(SweepError, match="one server setting; got points of 2"):
        find_cliff([point(1, 0.2), point(1, 0.2, max_loras=3)])


def test_a_factor_of_one_would_call_noise_a_cliff() -> None:
    with pytest.raises(SweepError, match=r"above 1, e\.g\. 2; got 1"):
        find_cliff([point(1, 0.2)], factor=1)


def test_the_smallest_setting_that_carries_all_is_recommended() -> None:
    small = cliff_of(0.2, 0.2, 0.2, 0.2, 1.4, cold=0.4)
    large = cliff_of(0.2, 0.2, 0.2, 0.2, 0.2, max_cpu_loras=8)
    larger = cliff_of(0.2, 0.2, 0.2, 0.2, 0.2, max_cpu_loras=16)
    chosen = recommend([larger, small, large])
    assert (chosen.max_loras, chosen.max_cpu_loras, chosen.is_measured) == (2, 8, True)
    assert "smallest setting of the sweep that supports 5 adapters" in chosen.reason
    assert "With max_loras 2 and max_cpu_loras 4: TTFT p50 stays near 200 ms up to 4" in chosen.reason


def test_where_none_carries_all_what_was_too_small_is_raised() -> None:
    cold = recommend([cliff_of(0.2, 0.2, 0.2, 0.2, 1.4, cold=0.4)], wanted=12)
    assert (cold.max_loras, cold.max_cpu_loras, cold.is_measured) == (2, 12, False)
    slots = recommend([cliff_of(0.2, 0.2, 0.9)], wanted=3)
    assert (slots.max_loras, slots.max_cpu_loras) == (3, 4)
    assert "Sweep it to confirm" in slots.reason


def test_an_overloaded_server_gets_no_new_settings() -> None:
    chosen = recommend([cliff_of(0.2, 0.9)])
    assert (chosen.max_loras, chosen.max_cpu_loras) == (2, 4)
    assert "Lower the rate" in chosen.reason


def test_there_is_nothing_to_recommend_from_nothing() -> None:
    with pytest.raises(SweepError, match="Sweep at least one setting"):
        recommend([])


def test_a_point_sums_up_a_run() -> None:
    run = run_of(*(request(n, ttft_s=0.1 + 0.01 * n, is_cold=n % 2 == 0) for n in range(11)), request(error="timeout"))
    made = point_of(run, 2, 4, 3)
    assert made.ttft_p50_s == pytest.approx(0.15)
    assert made.ttft_p50_low_s is not None
    assert made.ttft_p50_high_s is not None
    assert made.ttft_p50_low_s <= 0.15 <= made.ttft_p50_high_s
    assert made.cold_share == pytest.approx(6 / 11)
    assert made.error_share == pytest.approx(1 / 12)


def test_a_run_without_an_answer_is_a_point_too() -> None:
    assert point_of(run_of(request(error="timeout")), 2, 4, 3).ttft_p50_s is None
