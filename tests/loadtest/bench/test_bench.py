"""Benchmarks: measured alternately, reported beside a baseline."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from config.home import Home
from loadtest.bench.adapters import bench_adapters
from loadtest.bench.alternate import alternate
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchReport, BenchResult, results_table
from loadtest.bench.synthetic import Delays, synthetic_server
from loadtest.errors import TargetError


def spoken(name: str, values: Iterator[float], log: list[str]) -> Callable[[], float]:
    """A measurement that says when it is made."""

    def measure() -> float:
        log.append(name)
        return next(values)

    return measure


def test_both_are_measured_by_turns_and_each_goes_first() -> None:
    log: list[str] = []
    baseline, candidate = (spoken(name, iter([10.0] * 4), log) for name in "bc")
    alternate(baseline, candidate, rounds=4, sleep=lambda _: None)
    assert "".join(log) == "bccbbccb"


def test_the_ratio_is_of_pairs_so_that_a_slow_minute_hits_both() -> None:
    log: list[str] = []
    baseline, candidate = spoken("b", iter([100.0, 50.0, 10.0]), log), spoken("c", iter([200.0, 100.0, 20.0]), log)
    result = alternate(baseline, candidate, rounds=3, sleep=lambda _: None)
    assert (result.ratio, result.baseline, result.candidate) == (2.0, 50.0, 100.0)
    assert (result.ratio_interval.low, result.ratio_interval.high) == (2.0, 2.0)


def test_there_is_a_rest_before_each_measurement() -> None:
    rests: list[float] = []
    alternate(lambda: 1.0, lambda: 1.0, rounds=2, pause_s=0.5, sleep=rests.append)
    assert rests == [0.5] * 4


def test_no_rounds_and_no_baseline_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one round; got 0"):
        alternate(lambda: 1.0, lambda: 1.0, rounds=0)
    with pytest.raises(ValueError, match="ratio to a baseline of 0"):
        alternate(lambda: 0.0, lambda: 1.0, rounds=1, sleep=lambda _: None)


def report(is_pass: bool | None) -> BenchReport:
    result = BenchResult(name="x", value=90.0, unit="tok/s", baseline=100.0, ratio=0.9, target="ratio > 0.8")
    results = (result.model_copy(update={"is_pass": is_pass}), BenchResult(name="y", value=1.0, unit="s"))
    return BenchReport(bench="adapters", machine="two cores", started_at="now", results=results)


def test_the_json_has_the_agreed_keys() -> None:
    content = json.loads(report(True).to_json())
    assert {"bench", "machine", "results"} <= content.keys()
    agreed = {"name", "value", "unit", "baseline", "ratio", "target", "pass"}
    assert agreed <= content["results"][0].keys()
    assert [result["pass"] for result in content["results"]] == [True, None]
    assert BenchReport.model_validate(content) == report(True)


@pytest.mark.parametrize(("is_pass", "expected"), [(True, True), (False, False), (None, True)])
def test_a_report_passes_unless_a_target_is_missed(is_pass: bool | None, expected: bool) -> None:
    assert report(is_pass).is_pass is expected


def test_the_table_says_whether_a_target_was_reached() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(results_table(report(False)))
    assert "ratio > 0.8: NO" in out.getvalue()


@pytest.mark.slow
def test_adapters_are_measured_on_a_server_that_runs(tmp_path: Path) -> None:
    with synthetic_server(Delays(ttft_s=0.005, itl_s=0.001)) as server:
        options = BenchOptions(Home(tmp_path), url=f"{server.url}/v1", models=("base", "a", "b"), rounds=1, pause_s=0)
        results = bench_adapters(options)
    assert [result.name for result in results] == ["base", "one adapter", "base and 2 adapters mixed"]
    assert results[1].ratio is not None
    assert 0.2 < results[1].ratio < 5


def test_a_server_needs_a_base_and_two_adapters(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"the base and two adapters; got \['a'\]"):
        bench_adapters(BenchOptions(Home(tmp_path), url="http://test", models=("a",)))
