"""A simulated fleet: who gets what, by each policy, and that nothing is lost."""

from functools import cache

import pytest

from loadtest.simulate.demand import make_requests
from loadtest.simulate.fleet import POLICIES, FleetFigures, Policy, simulate
from loadtest.simulate.replica import ServerModel

MODEL = ServerModel(
    step_s=0.02, sequence_s=0.002, prompt_token_s=0.0002, overhead_s=0.003, load_s=0.5,
    max_running=8, max_loras=4, max_adapters=8,
)  # fmt: skip


def simulated(
    policy: Policy, num_replicas: int = 4, rate: float = 40.0, adapters: int = 24, **more: int
) -> FleetFigures:
    requests = make_requests(3000, rate, adapters, 1.0, [(40, 16)], seed=7, **more)
    return simulate(MODEL, requests, num_replicas, policy)


figures = cache(simulated)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_and_the_same_seed_gives_the_same_figures(policy: Policy) -> None:
    first = figures(policy)
    assert simulated(policy) == first
    assert first.num_requests == 3000
    assert 0 < first.ttft_p50_s <= first.ttft_p99_s


def test_affinity_loads_less_than_random_routing() -> None:
    assert figures("affinity").num_loads < figures("random").num_loads / 2
    assert figures("placement").num_loads < figures("random").num_loads / 2


@pytest.mark.slow
def test_one_hot_adapter_keeps_one_server_busy_by_affinity_and_spreads_by_placement() -> None:
    hot = {policy: figures(policy, adapters=1, rate=70.0) for policy in ("affinity", "placement")}
    assert hot["affinity"].busiest_share == 1.0
    assert hot["placement"].busiest_share < 0.5
    assert hot["placement"].refused_share == 0 < hot["affinity"].refused_share
    assert hot["placement"].ttft_p99_s < hot["affinity"].ttft_p99_s


@pytest.mark.slow
def test_more_servers_answer_sooner() -> None:
    assert figures("placement", 8).ttft_p99_s < figures("placement", 2).ttft_p99_s


def test_adapters_that_come_and_go_are_loaded_more_often() -> None:
    assert figures("placement", churn_every=50).num_loads > figures("placement").num_loads


@pytest.mark.slow
def test_progress_counts_every_request() -> None:
    counts: list[int] = []
    simulate(MODEL, make_requests(12_345, 500.0, 10, 1.0, [(4, 1)], 1), 4, "two_choices", on_requests=counts.append)
    assert sum(counts) == 12_345


@pytest.mark.parametrize(("requests", "replicas"), [(0, 1), (1, 0)])
def test_an_empty_fleet_or_demand_is_refused(requests: int, replicas: int) -> None:
    made = make_requests(1, 1.0, 1, 1.0, [(1, 1)], 1)[:requests]
    with pytest.raises(ValueError, match=r"at least one server|At least one request"):
        simulate(MODEL, made, replicas, "random")
