"""Which replica a request goes to, with replicas that are numbers."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from serve.cluster.affinity import PRIMARY, Affinity, ReplicaReport
from tests.clock import FakeClock

EMPTY = ReplicaReport(max_adapters=2, max_requests=2)


def affinity(**more):
    return Affinity("base", rng=random.Random(7), **more)


def holding(*models, **more):
    return replace(EMPTY, models=frozenset(models), num_adapters=len(models), **more)


def test_a_request_goes_where_its_adapter_is():
    reports = {1: EMPTY, 2: holding("medical"), 3: EMPTY}
    assert {affinity().choose("medical", reports) for _ in range(10)} == {2}


def test_a_version_is_not_another_one():
    reports = {1: holding("medical@2", "medical"), 2: holding("medical@1")}
    assert affinity().choose("medical@1", reports) == 2
    assert affinity().choose("medical", reports) == 1


def test_a_new_adapter_goes_where_fewest_are():
    assert affinity().choose("finance", {1: holding("medical"), 2: EMPTY}) == 2


def test_an_adapter_that_is_loading_draws_its_next_requests():
    router = affinity()
    first = router.choose("finance", {1: EMPTY, 2: EMPTY})
    assert {router.choose("finance", {1: EMPTY, 2: EMPTY}) for _ in range(10)} == {first}


def test_adapters_that_are_loading_count_as_taken():
    router = affinity()
    chosen = [router.choose(name, {1: EMPTY, 2: EMPTY}) for name in ("a", "b", "c", "d")]
    assert Counter(chosen) == {1: 2, 2: 2}


def test_a_load_that_never_ended_is_forgotten():
    clock = FakeClock()
    router = affinity(clock=clock)
    first = router.choose("finance", {1: EMPTY, 2: EMPTY})
    other = 3 - first
    clock.now_s += 11
    assert router.choose("finance", {first: holding("a"), other: EMPTY}) == other


def test_an_adapter_that_loads_for_long_is_held_where_its_request_waits() -> None:
    clock = FakeClock()
    router = affinity(clock=clock)
    first = router.send("first", "medical", {1: EMPTY, 2: EMPTY})
    router.began(first, "first", "medical")
    clock.now_s += 60
    assert {router.choose("medical", {1: EMPTY, 2: EMPTY}) for _ in range(10)} == {first}


def test_an_adapter_whose_load_was_long_is_held_until_its_replica_reports_it() -> None:
    clock = FakeClock()
    router = affinity(clock=clock)
    first = router.send("first", "medical", {1: EMPTY, 2: EMPTY})
    router.began(first, "first", "medical")
    clock.now_s += 60
    router.ended(first, "first")
    assert router.choose("medical", {1: EMPTY, 2: EMPTY}) == first
    assert router.choose("finance", {1: EMPTY, 2: EMPTY}) == 3 - first
    clock.now_s += 4
    assert router.choose("medical", {first: EMPTY, 3 - first: holding("medical")}) == 3 - first


def test_a_hot_adapter_spreads_to_a_replica_that_is_idle():
    router, reports = affinity(), {1: holding("medical"), 2: EMPTY}
    router.began(1, "x")
    assert router.choose("medical", reports) == 1
    router.began(1, "y")
    assert router.choose("medical", reports) == 2


def test_requests_of_a_burst_count_before_they_are_accepted():
    router, reports = affinity(), {1: holding("medical"), 2: EMPTY}
    sent = [router.send(str(number), "medical", reports) for number in range(4)]
    assert Counter(sent) == {1: 2, 2: 2}


def test_a_request_that_was_withdrawn_is_no_load():
    clock = FakeClock()
    router, reports = affinity(clock=clock), {1: holding("medical"), 2: EMPTY}
    for number in range(2):
        router.send(str(number), "medical", reports)
    clock.now_s += 3
    assert router.choose("medical", reports) == 1


def test_a_request_that_is_sent_again_counts_once():
    router, reports = affinity(), {1: holding("medical"), 2: EMPTY}
    assert [router.send("x", "medical", reports) for _ in range(4)] == [1] * 4


def test_an_ended_request_is_no_load():
    router, reports = affinity(), {1: holding("medical"), 2: EMPTY}
    for request_id in ("x", "y"):
        router.began(1, request_id)
        router.ended(1, request_id)
        router.ended(1, request_id)
    assert router.choose("medical", reports) == 1


@pytest.mark.parametrize("model", ["base", ""])
def test_requests_for_the_base_go_to_the_less_busy(model):
    router = affinity()
    router.began(1, "x")
    assert router.choose(model, {1: EMPTY, 2: EMPTY}) == 2


def test_a_replica_whose_engine_restarts_gets_nothing():
    reports = {1: holding("medical", is_ready=False), 2: EMPTY}
    assert affinity().choose("medical", reports) == 2
    assert affinity().choose("medical", {1: reports[1]}) == 1


def test_the_monitor_is_asked_where_it_runs():
    reports = {1: replace(EMPTY, rank=1), 2: replace(EMPTY, rank=0)}
    assert affinity().choose("", reports, PRIMARY) == 2


def test_random_routing_ignores_what_replicas_hold():
    router = affinity(routing="random")
    assert {router.choose("medical", {1: holding("medical"), 2: EMPTY}) for _ in range(20)} == {1, 2}


def test_a_replica_that_has_gone_is_forgotten():
    router = affinity()
    router.choose("a", {1: EMPTY})
    router.choose("b", {2: EMPTY})
    assert router.choose("a", {1: holding("c", "d"), 2: EMPTY}) == 2


def test_no_replica_is_an_error():
    with pytest.raises(ValueError, match="At least one server"):
        affinity().choose("a", {})


def test_a_report_survives_its_way_through_ray():
    report = ReplicaReport.parse({"rank": 1, "models": ["a@1"], "num_adapters": 1, "max_adapters": 2})
    assert report == ReplicaReport(1, models=frozenset({"a@1"}), num_adapters=1, max_adapters=2)
    assert ReplicaReport.parse({}).is_ready


def test_an_adapter_with_most_of_the_traffic_gets_a_second_replica():
    roomy = replace(EMPTY, max_requests=32)
    router, reports = affinity(), {1: replace(roomy, models=frozenset({"medical"}), num_adapters=1), 2: roomy}
    sent = [router.send(str(number), "medical", reports) for number in range(10)]
    assert sent[:4] == [1] * 4
    assert Counter(sent) == {1: 5, 2: 5}


def test_an_adapter_with_little_of_the_traffic_stays():
    roomy = replace(EMPTY, max_requests=32, max_adapters=9)
    router = affinity()
    reports = {1: replace(roomy, models=frozenset({"a", "b", "c", "d"}), num_adapters=4), 2: roomy}
    for number in range(5):
        router.began(2, f"other {number}")
    sent = [router.send(str(number), "abcd"[number % 4], reports) for number in range(19)]
    assert Counter(sent) == {1: 19}


def test_sticky_routing_never_copies_an_adapter():
    router, reports = affinity(routing="sticky"), {1: holding("medical"), 2: EMPTY}
    assert {router.send(str(number), "medical", reports) for number in range(20)} == {1}
    assert router.choose("finance", reports) == 2
