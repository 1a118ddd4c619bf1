"""A thousand adapters: compared with one, and followed for a long time."""

import os
import time
from pathlib import Path

import pytest

from config.home import Home
from loadtest.bench.cost import ComparedServer
from loadtest.bench.manyadapters import Churn, ManyAdaptersResult, churn_results, compare, measure_served, metric_total
from loadtest.bench.memory import MemorySample, Trend, sampled_memory, trend_of
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.synthetic import Delays, synthetic_server
from loadtest.load.records import RequestRecord
from tests.runs import request

NAMES = tuple(f"a-{number:03d}" for number in range(100))
FLAT = Trend(3e9, 3e9, 0.0)
METRICS = """
# HELP lorikeet_adapter_loads_total Loads into the engine.
# TYPE lorikeet_adapter_loads_total counter
lorikeet_adapter_loads_total{adapter="a-000",version="1"} 3.0
lorikeet_adapter_loads_total{adapter="a-001",version="1"} 4.0
lorikeet_adapter_loads_totally{adapter="a-001"} 100.0
lorikeet_engine_restarts_total 2.0
"""


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    return BenchOptions(Home(tmp_path), rounds=3, pause_s=0)


class Servings:
    """The figures of one adapter, and those of many."""

    def __init__(self, one: ManyAdaptersResult, many: ManyAdaptersResult) -> None:
        self._one, self._many = one, many
        self.asked: list[tuple[int, int]] = []

    def __call__(self, models: tuple[str, ...], seed: int) -> ManyAdaptersResult:
        self.asked.append((len(models), seed))
        return self._one if len(models) == 1 else self._many


def churned(records: tuple[RequestRecord, ...], memory: Trend = FLAT) -> Churn:
    return Churn(records, duration_s=1200.0, cpu_s=24.0, num_loads=70, num_unloads=60, memory=memory)


def named(results: tuple[BenchResult, ...], part: str) -> BenchResult:
    return next(result for result in results if part in result.name)


def answered(index: int, model: str, ttft_s: float) -> RequestRecord:
    return request(index, model=model, ttft_s=ttft_s, num_tokens=32)


def test_many_are_held_against_one(options: BenchOptions) -> None:
    servings = Servings(ManyAdaptersResult(300, 6.0, 100, 200), ManyAdaptersResult(240, 7.5, 150, 500))
    speed, cpu, p50, p99 = compare(NAMES, 8, servings, options)
    assert (speed.value, speed.baseline, speed.ratio, speed.is_pass) == (240, 300, 0.8, True)
    assert (cpu.ratio, cpu.is_pass, p50.ratio, p50.is_pass) == (1.25, None, 1.5, None)
    assert (p99.value, p99.ratio, p99.target, p99.is_pass) == (500, 2.5, "ratio at most 3", True)


def test_many_that_wait_miss_both_targets(options: BenchOptions) -> None:
    speed, _, _, p99 = compare(
        NAMES, 8, Servings(ManyAdaptersResult(300, 6, 100, 200), ManyAdaptersResult(200, 7, 150, 601)), options
    )
    assert (speed.is_pass, p99.is_pass) == (False, False)
    assert (speed.target, p99.target) == ("ratio at least 0.7", "ratio at most 3")


def test_both_are_warmed_up_and_each_goes_first(options: BenchOptions) -> None:
    servings = Servings(ManyAdaptersResult(1, 1, 1, 1), ManyAdaptersResult(1, 1, 1, 1))
    compare(NAMES, 8, servings, options)
    assert servings.asked == [(1, 0), (100, 0), (1, 1), (100, 1), (100, 2), (1, 2), (1, 3), (100, 3)]


@pytest.mark.slow
def test_a_measurement_is_of_streams_with_their_first_tokens() -> None:
    with synthetic_server(Delays(ttft_s=0.05, itl_s=0.001)) as server:
        served = measure_served(ComparedServer(f"{server.url}/v1", os.getpid()), NAMES, 1)
    assert 50 <= served.ttft_p50_ms <= served.ttft_p99_ms < 1000
    assert served.tokens_per_s > 100
    assert served.cpu_ms_per_token > 0


def test_a_long_run_tells_loads_and_throughput() -> None:
    results = churn_results(churned(tuple(answered(index, "a-000", 0.1) for index in range(75))), NAMES)
    assert named(results, "throughput").value == 2.0
    assert named(results, "CPU per token").value == 10.0
    assert (named(results, "cold loads").value, named(results, "evictions").value) == (70, 60)
    assert named(results, "20 minutes: requests").value == 75
    assert named(results, "failed").is_pass is True


def test_a_request_that_failed_is_counted_and_misses_the_target() -> None:
    failed = request(1, model="a-000", error="server_error")
    results = churn_results(churned((answered(0, "a-000", 0.1), failed)), NAMES)
    assert (named(results, "failed").value, named(results, "failed").is_pass) == (1, False)


def test_first_tokens_are_told_by_popularity_and_silent_tenths_left_out() -> None:
    records = (answered(0, "a-000", 0.1), answered(1, "a-009", 0.3), answered(2, "a-010", 0.5), answered(3, "a-099", 1))
    tenths = [result for result in churn_results(churned(records), NAMES) if "popularity" in result.name]
    assert [result.value for result in tenths] == pytest.approx([200, 500, 1000])
    assert [result.name for result in tenths] == [
        "TTFT p50, adapters 1 to 10 by popularity, 2 requests",
        "TTFT p50, adapters 11 to 20 by popularity, 1 requests",
        "TTFT p50, adapters 91 to 100 by popularity, 1 requests",
    ]


@pytest.mark.parametrize(("end_bytes", "expected"), [(3.1e9, True), (3.2e9, False)])
def test_memory_may_grow_by_a_twentieth(end_bytes: float, expected: bool) -> None:
    memory = Trend(3e9, end_bytes, 1e7)
    results = churn_results(churned((answered(0, "a-000", 0.1),), memory), NAMES)
    resident, slope = named(results, "resident"), named(results, "slope")
    assert (resident.value, resident.baseline, resident.is_pass) == (end_bytes / 1e6, 3000, expected)
    assert (slope.value, slope.unit) == (10, "MB/h")


def test_a_counter_is_summed_over_its_labels() -> None:
    assert metric_total(METRICS, "lorikeet_adapter_loads_total") == 7
    assert metric_total(METRICS, "lorikeet_engine_restarts_total") == 2
    assert metric_total(METRICS, "lorikeet_adapter_unloads_total") == 0


def test_a_trend_is_of_the_ends_and_of_the_line_between() -> None:
    samples = [MemorySample(float(at_s), 1000 + 2 * at_s) for at_s in range(101)]
    trend = trend_of(samples)
    assert (trend.start_bytes, trend.end_bytes) == (1009, 1191)
    assert trend.slope_bytes_per_h == pytest.approx(7200)


def test_one_sample_is_no_trend() -> None:
    with pytest.raises(ValueError, match="more than 1 samples"):
        trend_of([MemorySample(0.0, 1)])


def test_memory_is_sampled_from_the_start_to_the_end() -> None:
    samples: list[MemorySample] = []
    with sampled_memory(os.getpid(), samples, every_s=0.05):
        time.sleep(0.3)
    assert len(samples) >= 4
    assert samples[0].at_s < 0.05 < 0.3 <= samples[-1].at_s
    assert min(sample.resident_bytes for sample in samples) > 1 << 20
