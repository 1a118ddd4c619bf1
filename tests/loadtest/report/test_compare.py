"""Two runs side by side: what differs, and what only seems to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load.records import RunResult
from loadtest.report.bootstrap import block_weights, interval_of, median_interval, resampled_percentiles
from loadtest.report.compare import Difference, RunComparison, compare
from tests.runs import random_run, request, run_of

RUN = random_run(num_models=1)
SLOWER = 1.5


@pytest.fixture(scope="module")
def with_slower() -> RunComparison:
    return compare(RUN, slower(RUN, SLOWER))


def by_metric(comparison: RunComparison) -> dict[str, Difference]:
    return {difference.metric: difference for difference in comparison.overall}


def slower(run: RunResult, factor: float) -> RunResult:
    """The same requests, each answered `factor` times as slowly."""
    records = [
        record.model_copy(
            update={
                "chunk_times_s": tuple(
                    record.intended_s + factor * (t - record.intended_s) for t in record.chunk_times_s
                ),
                "ended_s": record.intended_s + factor * record.e2e_s,
            }
        )
        for record in run.records
    ]
    return run.model_copy(update={"records": tuple(records)})


@pytest.mark.slow
def test_a_run_does_not_differ_from_itself() -> None:
    assert {difference.change for difference in compare(RUN, RUN).overall} == {"no difference"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_two_runs_of_the_same_server_do_not_differ_by_a_tenth(seed: int) -> None:
    assert compare(RUN, random_run(num_models=1, seed=seed)).worse_than(0.10) == ()


@pytest.mark.slow
def test_a_slower_server_is_worse_in_every_latency_by_the_right_ratio(with_slower: RunComparison) -> None:
    differences = by_metric(with_slower)
    assert {differences[f"{m} p50"].change for m in ("ttft", "itl", "e2e")} == {"worse"}
    assert differences["ttft p50"].ratio == pytest.approx(SLOWER)
    assert differences["ttft p50"].worsening() == pytest.approx(0.5, abs=0.3)
    assert differences["errors"].change == "no difference"


@pytest.mark.slow
def test_a_faster_server_is_better() -> None:
    assert by_metric(compare(slower(RUN, SLOWER), RUN))["ttft p50"].change == "better"


@pytest.mark.slow
def test_half_the_throughput_is_worse() -> None:
    run = random_run(num_models=1, error_share=0)
    stretched = run.model_copy(update={"duration_s": 2 * run.duration_s})
    difference = by_metric(compare(run, stretched))["requests/s"]
    assert difference.change == "worse"
    assert difference.ratio == pytest.approx(0.5)


def test_only_what_is_surely_worse_than_the_share_fails(with_slower: RunComparison) -> None:
    assert "ttft p50" in {difference.metric for difference in with_slower.worse_than(0.05)}
    assert with_slower.worse_than(0.6) == ()


@pytest.mark.slow
def test_more_errors_are_worse_by_the_sure_part_of_the_difference() -> None:
    clean = run_of(*(request() for _ in range(200)))
    broken = run_of(*(request(error="timeout" if n % 4 == 0 else None) for n in range(200)))
    errors = by_metric(compare(clean, broken))["errors"]
    assert (errors.a, errors.b, errors.ratio, errors.change) == (0.0, 0.25, None, "worse")
    assert 0.15 < errors.worsening() < 0.25


def test_a_few_requests_are_not_judged() -> None:
    difference = by_metric(compare(run_of(request()), run_of(request(ttft_s=9))))["ttft p99"]
    assert difference.ratio == pytest.approx(90)
    assert difference.change == "unknown"


def test_a_run_in_which_all_failed_has_no_latencies_to_compare() -> None:
    failed = run_of(*(request(error="timeout") for _ in range(20)))
    difference = by_metric(compare(failed, random_run()))["e2e p50"]
    assert (difference.a, difference.ratio, difference.change) == (None, None, "unknown")


def test_two_empty_runs_can_be_compared() -> None:
    empty = run_of(duration_s=0.0)
    assert {difference.change for difference in compare(empty, empty).overall} == {"unknown"}


@pytest.mark.slow
def test_models_that_both_runs_asked_are_compared_one_by_one() -> None:
    comparison = compare(random_run(num_requests=60, num_models=3), random_run(num_requests=60, num_models=2))
    assert {difference.model for difference in comparison.by_model} == {"adapter-000", "adapter-001"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_intervals() -> None:
    a, b = (random_run(num_requests=60, num_models=1, seed=seed) for seed in (1, 2))
    assert compare(a, b, seed=5) == compare(a, b, seed=5)


def test_what_makes_a_comparison_doubtful_is_said() -> None:
    a = run_of(request())
    b = run_of(request(), is_bottleneck=True).model_copy(
        update={"workload": {"rate_per_s": 20}, "seed": 2, "machine": "four cores"}
    )
    warnings = " ".join(compare(a, b).warnings)
    assert "workloads differ in rate_per_s" in warnings
    assert "seeds differ (1 and 2)" in warnings
    assert "'two cores' and 'four cores'" in warnings
    assert "In B the generator was the bottleneck" in warnings


@given(st.integers(1, 200))
def test_every_draw_has_as_many_requests_as_the_run(n: int) -> None:
    weights = block_weights(n, np.random.default_rng(1), num_resamples=5)
    assert weights.sum(axis=1).tolist() == [n] * 5


def test_requests_that_share_a_queue_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    waves = [1.0 + (n // 20) % 2 + 0.01 * rng.random() for n in range(400)]
    shuffled = rng.permutation(waves).tolist()
    wide, narrow = (interval_of(resampled_percentiles([(v,) for v in x], (30,), rng)) for x in (waves, shuffled))
    assert wide.high - wide.low >= narrow.high - narrow.low


def test_the_interval_of_a_median_holds_the_median() -> None:
    values = np.random.default_rng(3).gamma(4, 0.05, 200).tolist()
    assert float(np.median(values)) in median_interval(values, seed=1)


def test_there_is_no_median_of_nothing() -> None:
    with pytest.raises(ValueError, match="median of an empty list"):
        median_interval([], seed=1)
