"""The rows of `lorikeet bench cluster`."""

from typing import Any

import pytest

from loadtest.bench.cluster import RoutedLoad, hot_results, overhead_results, routing_results
from loadtest.bench.cluster_faults import Kill, Scaling, kill_results, scaling_results
from loadtest.bench.cluster_server import NUM_TOKENS, wrong_answers
from loadtest.bench.cost import Cost
from loadtest.load.records import RequestRecord


def record(**changes: Any) -> RequestRecord:
    good = {"index": 0, "model": "a", "served_by": "a@1", "intended_s": 0.0, "sent_s": 0.0, "ended_s": 2.0}
    return RequestRecord(**good | {"num_completion_tokens": NUM_TOKENS, "chunk_times_s": (1.0, 2.0)} | changes)


BROKEN = record(error="broken_stream")
REFUSED = record(error="server_error", chunk_times_s=())


def test_affinity_must_halve_cold_loads_and_shorten_the_tail() -> None:
    loads, ttft, throughput = routing_results(RoutedLoad(40, 1000.0, 20.0), RoutedLoad(20, 800.0, 30.0))
    assert (loads.ratio, ttft.ratio, throughput.ratio) == (0.5, 0.8, 1.5)
    assert (loads.is_pass, ttft.is_pass, throughput.is_pass) == (True, True, None)


@pytest.mark.parametrize("affinity", [RoutedLoad(21, 800.0, 30.0), RoutedLoad(20, 801.0, 30.0)])
def test_a_missed_target_fails(affinity: RoutedLoad) -> None:
    assert False in {row.is_pass for row in routing_results(RoutedLoad(40, 1000.0, 20.0), affinity)}


@pytest.mark.parametrize(("tokens_per_s", "is_pass"), [(149.0, False), (150.0, True)])
def test_a_hot_adapter_must_be_worth_two_replicas(tokens_per_s: float, is_pass: bool) -> None:
    throughput, _ = hot_results(RoutedLoad(3, 100.0, 100.0), RoutedLoad(4, 100.0, tokens_per_s))
    assert throughput.is_pass is is_pass


@pytest.mark.parametrize(
    ("records", "num_wrong", "back_s", "passes"),
    [
        ([BROKEN], 0, 60.0, [True, True, True, True]),
        ([BROKEN, BROKEN], 0, 60.0, [True, False, True, True]),
        ([REFUSED], 1, 61.0, [False, True, False, False]),
    ],
)
def test_a_kill_costs_what_ran_there(
    records: list[RequestRecord], num_wrong: int, back_s: float, passes: list[bool]
) -> None:
    kill = Kill((record(), *records), num_wrong, num_there=1, back_s=back_s, start_s=60.0)
    assert [row.is_pass for row in kill_results(kill)] == passes


def test_no_request_may_fail_while_replicas_come_and_go() -> None:
    failed, wrong, *_ = scaling_results(Scaling((record(), BROKEN), 0, 1.0, 1.0))
    assert (failed.is_pass, wrong.is_pass) == (False, True)


def test_an_answer_of_another_version_or_length_is_wrong() -> None:
    others = record(served_by="a@2"), record(num_completion_tokens=1)
    assert wrong_answers((record(), BROKEN, *others), {"a": "a@1"}) == list(others)


def test_what_the_ingress_costs_is_bounded() -> None:
    throughput, _, ttft = overhead_results([(Cost(100.0, 8.0), Cost(91.0, 9.0))], [(50.0, 64.0)])
    assert (throughput.is_pass, ttft.is_pass, ttft.value) == (True, True, 14.0)
