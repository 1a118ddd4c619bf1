"""The rows of `lorikeet bench cluster`."""

from pathlib import Path
from typing import Any, cast

import pytest

from config.home import Home
from config.serve import ServeConfig
from loadtest.bench.cluster import _ClusterBench, simulate_command
from loadtest.bench.cluster_faults import Kill, LoadOutcome, Scaling, kill_results, outcome_of, scaling_results
from loadtest.bench.cluster_ingress import IngressCost, IngressCosts, ingress_results
from loadtest.bench.cluster_kept import KeptMeasurements
from loadtest.bench.cluster_routing import RoutedLoad, hot_results, routing_results
from loadtest.bench.cluster_server import NUM_TOKENS, wrong_answers
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult, result_line
from loadtest.bench.server import ServerError
from loadtest.errors import TargetError
from loadtest.load.records import RequestRecord


def record(**changes: Any) -> RequestRecord:
    good = {"index": 0, "model": "a", "served_by": "a@1", "intended_s": 0.0, "sent_s": 0.0, "ended_s": 2.0}
    return RequestRecord(**good | {"num_completion_tokens": NUM_TOKENS, "chunk_times_s": (1.0, 2.0)} | changes)


BROKEN = record(error="broken_stream")
REFUSED = record(error="server_error", chunk_times_s=())


def routed(num_loads: float, ttft_p99_ms: float, tokens_per_s: float) -> RoutedLoad:
    return RoutedLoad(num_requests=9, num_loads=num_loads, ttft_p99_ms=ttft_p99_ms, tokens_per_s=tokens_per_s)


def test_affinity_must_halve_cold_loads_and_shorten_the_tail() -> None:
    loads, ttft = routing_results(routed(40, 1000.0, 20.0), routed(20, 800.0, 30.0))
    assert (loads.ratio, ttft.ratio) == (0.5, 0.8)
    assert (loads.is_pass, ttft.is_pass) == (True, True)


@pytest.mark.parametrize("affinity", [routed(21, 800.0, 30.0), routed(20, 801.0, 30.0)])
def test_a_missed_target_fails(affinity: RoutedLoad) -> None:
    assert False in {row.is_pass for row in routing_results(routed(40, 1000.0, 20.0), affinity)}


@pytest.mark.parametrize(("tokens_per_s", "is_pass"), [(149.0, False), (150.0, True)])
def test_a_hot_adapter_must_be_worth_two_replicas(tokens_per_s: float, is_pass: bool) -> None:
    throughput, _ = hot_results(routed(3, 100.0, 100.0), routed(4, 100.0, tokens_per_s))
    assert throughput.is_pass is is_pass


@pytest.mark.parametrize(
    ("records", "back_s", "passes"),
    [
        ([BROKEN], 60.0, [True, True, True, True]),
        ([BROKEN, BROKEN], 60.0, [True, False, True, True]),
        ([REFUSED, record(served_by="a@2")], 61.0, [False, True, False, False]),
    ],
)
def test_a_kill_costs_what_ran_there(records: list[RequestRecord], back_s: float, passes: list[bool]) -> None:
    outcome = outcome_of((record(), *records), ("a",))
    kill = Kill(outcome=outcome, num_there=1, back_s=back_s, start_s=60.0)
    assert [row.is_pass for row in kill_results(kill)] == passes


def test_no_request_may_fail_while_replicas_come_and_go() -> None:
    outcome = LoadOutcome(num_requests=2, num_failed=1, num_unsent=0, num_wrong=0)
    failed, wrong, *_ = scaling_results(Scaling(outcome=outcome, up_s=1.0, down_s=1.0))
    assert (failed.is_pass, wrong.is_pass) == (False, True)


def test_an_answer_of_another_version_or_length_is_wrong() -> None:
    others = record(served_by="a@2"), record(num_completion_tokens=1)
    assert wrong_answers((record(), BROKEN, *others), {"a": "a@1"}) == list(others)


@pytest.mark.parametrize(("ttft_ms", "is_pass"), [(65.0, True), (65.5, False)])
def test_what_the_ingress_costs_is_bounded(ttft_ms: float, is_pass: bool) -> None:
    single = IngressCost(tokens_per_s=100.0, cpu_ms_per_token=8.0, ttft_p50_ms=50.0, tpot_p50_ms=20.0)
    replica = IngressCost(tokens_per_s=91.0, cpu_ms_per_token=9.0, ttft_p50_ms=ttft_ms, tpot_p50_ms=21.0)
    throughput, _, ttft, per_token = ingress_results(IngressCosts(rounds=((single, replica),)))
    assert (throughput.is_pass, ttft.is_pass) == (True, is_pass)
    assert (per_token.name.split(", ")[3][:7], per_token.value, per_token.baseline) == ("+1.0 ms", 21.0, 20.0)


def test_a_line_has_both_sides_the_ratio_and_the_target() -> None:
    loads, _ = routing_results(routed(40, 1000.0, 20.0), routed(20, 800.0, 30.0))
    line = result_line(loads)
    assert ": 20 loads; baseline 40; ratio 0.500;" in line
    assert line.endswith("target ratio at most 0.5: yes")


def test_an_interrupted_run_continues_with_what_was_measured(tmp_path: Path) -> None:
    said: list[str] = []
    first = routed(40, 1000.0, 20.0)
    KeptMeasurements(tmp_path, said.append).measure("random", RoutedLoad, lambda: first)
    later = KeptMeasurements(tmp_path, said.append)
    assert later.measure("random", RoutedLoad, lambda: pytest.fail("measured again")) == first
    assert said[0] == "random: 9 requests, 40 cold loads, TTFT p99 1,000 ms, 20.0 tok/s"
    assert "Continuing an interrupted run" in said[1]
    later.clear()
    assert KeptMeasurements(tmp_path, said.append).find("random", RoutedLoad) is None


def test_a_measurement_of_another_version_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text('{"random": {"loads": 3}}')
    again = routed(40, 1000.0, 20.0)
    assert KeptMeasurements(tmp_path, print).measure("random", RoutedLoad, lambda: again) == again


def test_a_failed_phase_is_a_row_and_the_others_continue(tmp_path: Path) -> None:
    class Broken(_ClusterBench):
        def _random(self) -> Any:
            raise ServerError("It did not start.")

        def _last(self) -> Any:
            yield BenchResult(name="last", value=1, unit="s")

        _sticky = _affinity = _scaling = _simulated = _random
        _ingress = _last

    said: list[str] = []
    options = BenchOptions(Home(tmp_path), say=said.append)
    kept = KeptMeasurements(tmp_path, said.append)
    bench = Broken(options, ServeConfig(base="b"), Home(tmp_path), ("a",), tmp_path, kept)
    *failed, last = bench.rows()
    assert {row.is_pass for row in failed} == {False}
    assert (len(failed), last.name, bench.has_failed) == (5, "last", True)
    assert "phase random failed: It did not start." in said


def test_no_server_starts_for_measurements_that_are_kept(tmp_path: Path) -> None:
    kept = KeptMeasurements(tmp_path, lambda line: None)
    measured = routed(40, 1000.0, 20.0)
    for name in ("random: Zipf", "sticky: hot adapter", "affinity: Zipf", "affinity: hot adapter"):
        kept.measure(name, RoutedLoad, lambda: measured)
    outcome = LoadOutcome(num_requests=2, num_failed=0, num_unsent=0, num_wrong=0)
    kept.measure("affinity: SIGKILL", Kill, lambda: Kill(outcome=outcome, num_there=1, back_s=1.0, start_s=2.0))
    bench = _ClusterBench(cast(Any, None), ServeConfig(base="b"), Home(tmp_path), ("a",), tmp_path, kept)
    rows = [*bench._random(), *bench._sticky(), *bench._affinity()]
    assert len(rows) == 8
    assert "cold loads" in rows[0].name


def test_no_run_of_another_day_is_simulated(tmp_path: Path) -> None:
    kept = KeptMeasurements(tmp_path, lambda line: None)
    bench = _ClusterBench(cast(Any, None), ServeConfig(base="b"), Home(tmp_path), ("a",), tmp_path, kept)
    with pytest.raises(TargetError, match="'one replica: Zipf' is missing"):
        next(bench._simulated())


def test_the_command_that_repeats_the_simulation_has_the_servers_limits(tmp_path: Path) -> None:
    command = simulate_command(ServeConfig(base="b", max_loras=4, max_cpu_loras=4), tmp_path)
    assert f"simulate {tmp_path / 'one'} --against {tmp_path / 'two'} --replicas 2 --policy placement" in command
    assert command.endswith("--max-num-seqs 32 --max-loras 4 --max-cpu-loras 4")
