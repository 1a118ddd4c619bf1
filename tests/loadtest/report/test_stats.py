"""Latencies, throughput, errors and the timeline of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.stats import (
    bucket_width_s,
    error_counts,
    percentile,
    summarize,
    summarize_by_model,
    summarize_latency,
    timeline,
    values_of,
)
from tests.runs import random_run, request, run_of

SECONDS = st.lists(st.floats(0, 1e3), min_size=1, max_size=50)


def test_a_percentile_lies_on_the_line_between_its_two_neighbours() -> None:
    assert percentile([4.0, 1.0, 2.0, 3.0], 50) == 2.5
    assert percentile([0.0, 10.0], 99) == pytest.approx(9.9)


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="percentile of an empty list"):
        percentile([], 50)


def test_a_percentile_above_a_hundred_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 100; got 999"):
        percentile([1.0], 999)


@given(SECONDS)
def test_percentiles_are_in_order_and_inside_the_values(values: list[float]) -> None:
    summary = summarize_latency(values)
    assert summary is not None
    assert min(values) <= summary.p50_s <= summary.p90_s <= summary.p95_s <= summary.p99_s <= max(values)


def test_latencies_count_from_the_intended_moment() -> None:
    late = request(at_s=1.0, ttft_s=0.1).model_copy(update={"intended_s": 0.4})
    assert values_of([late], "ttft") == pytest.approx([0.7])
    assert values_of([late], "e2e") == pytest.approx([0.9])


def test_an_answer_of_one_token_has_no_gaps() -> None:
    summary = summarize(run_of(request(num_tokens=1)))
    assert (summary.latencies.itl, summary.latencies.tpot) == (None, None)
    assert summary.latencies.ttft is not None


def test_gaps_of_all_requests_are_pooled() -> None:
    slow, fast = request(itl_s=0.5, num_tokens=2), request(itl_s=0.01, num_tokens=10)
    itl = summarize(run_of(slow, fast)).latencies.itl
    assert itl is not None
    assert (itl.n, round(itl.p50_s, 6)) == (10, 0.01)


def test_failed_requests_are_counted_by_kind_and_have_no_latency() -> None:
    summary = summarize(
        run_of(request(), request(error="timeout"), request(error="timeout"), request(error="throttled"))
    )
    assert summary.errors == {"timeout": 2, "throttled": 1}
    assert (summary.num_requests, summary.num_ok, summary.error_share) == (4, 1, 0.75)
    assert summary.latencies.ttft is not None
    assert summary.latencies.ttft.n == 1


def test_throughput_is_what_ended_well_over_the_duration() -> None:
    summary = summarize(run_of(request(), request(), request(error="timeout"), duration_s=4.0))
    assert (summary.requests_per_s, summary.output_tokens_per_s) == (0.5, 5.5)


def test_cold_and_warm_requests_are_told_apart() -> None:
    summary = summarize(run_of(request(ttft_s=2.0, is_cold=True), request(ttft_s=0.1), request(ttft_s=0.3)))
    assert summary.cold is not None
    assert summary.warm is not None
    assert summary.cold.ttft is not None
    assert summary.warm.ttft is not None
    assert (summary.num_cold, summary.cold.ttft.p50_s) == (1, 2.0)
    assert summary.warm.ttft.p50_s == pytest.approx(0.2)


def test_a_server_that_does_not_say_what_is_cold_has_neither() -> None:
    summary = summarize(run_of(request(is_cold=None)))
    assert (summary.cold, summary.warm, summary.num_cold) == (None, None, 0)


def test_models_come_in_the_order_of_their_traffic() -> None:
    run = run_of(request(model="a"), request(model="b"), request(model="b"), request(model="c"))
    assert [(s.model, s.num_requests) for s in summarize_by_model(run)] == [("b", 2), ("a", 1), ("c", 1)]


def test_a_run_without_requests_has_a_summary() -> None:
    summary = summarize(run_of(duration_s=0.0))
    assert (summary.num_requests, summary.requests_per_s, summary.error_share) == (0, 0.0, 0.0)


def test_every_request_is_in_one_bucket_of_the_timeline() -> None:
    run = random_run()
    buckets = timeline(run.records, run.duration_s, 1.0)
    assert sum(bucket.num_intended for bucket in buckets) == len(run.records)
    assert sum(bucket.num_ok + bucket.num_errors for bucket in buckets) == len(run.records)
    assert sum(bucket.num_errors for bucket in buckets) == sum(error_counts(run.records).values())


def test_a_bucket_says_when_requests_were_wanted_and_when_answers_ended() -> None:
    first, second = timeline([request(at_s=0.5, ttft_s=1.0)], 2.0, 1.0)
    assert (first.num_intended, first.num_ok, first.ttft_p50_s) == (1, 0, 1.0)
    assert (second.num_intended, second.num_ok, second.ttft_p50_s) == (0, 1, None)


def test_a_bucket_has_a_width() -> None:
    with pytest.raises(ValueError, match="wider than 0 s; got 0"):
        timeline([], 1.0, 0)


@given(st.floats(0.01, 1e6))
def test_a_run_has_at_most_sixty_buckets(duration_s: float) -> None:
    assert len(timeline([], duration_s, bucket_width_s(duration_s))) <= 61
