"""Where a request goes: to a server that holds its adapter, and to one more when that one is full."""

import random
from collections import Counter

import pytest

from adapters.placement import ReplicaLoad, choose_replica, copies_wanted, less_busy_of_two, share_of_new


def load(num_requests: int = 0, num_adapters: int = 0) -> ReplicaLoad:
    return ReplicaLoad(num_requests, max_requests=8, num_adapters=num_adapters, max_adapters=4)


def chosen(holders: dict[str, ReplicaLoad], others: dict[str, ReplicaLoad]) -> Counter[str]:
    """Over many draws."""
    loads, rng = holders | others, random.Random(1)
    return Counter(choose_replica(list(holders), list(others), loads.__getitem__, rng) for _ in range(300))


def test_a_request_goes_where_its_adapter_is() -> None:
    assert chosen({"a": load(7)}, {"b": load(2)}).keys() == {"a"}


def test_the_less_busy_of_two_holders_is_chosen() -> None:
    counts = chosen({"a": load(6), "b": load(2), "c": load(4)}, {})
    assert counts["b"] > counts["c"] > counts["a"] == 0


def test_a_hot_adapter_gets_another_server_when_its_own_is_full() -> None:
    assert chosen({"a": load(8)}, {"b": load(4)}).keys() == {"b"}
    assert chosen({"a": load(8)}, {"b": load(5)}).keys() == {"a"}  # a load for little


def test_a_new_adapter_goes_where_most_places_are_free() -> None:
    assert chosen({}, {"a": load(0, 4), "b": load(3, 1), "c": load(1, 2)}).keys() == {"b"}
    assert chosen({}, {"a": load(8, 0), "b": load(3, 3)}).keys() == {"b"}  # the other is full


def test_without_servers_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="At least one server"):
        choose_replica([], [], lambda name: load(), random.Random(1))


def test_two_choices_look_at_two() -> None:
    loads = {name: load(number) for number, name in enumerate("abc")}
    rng = random.Random(1)
    counts = Counter(less_busy_of_two(list(loads), loads.__getitem__, rng) for _ in range(300))
    assert counts["a"] > counts["b"] > counts["c"] == 0


@pytest.mark.parametrize(
    ("num_own", "num_all", "copies"), [(3, 3, 1), (4, 16, 1), (8, 16, 1), (9, 16, 2), (14, 16, 2), (16, 16, 2)]
)
def test_copies_follow_the_share_of_the_traffic(num_own: int, num_all: int, copies: int) -> None:
    assert copies_wanted(num_own, num_all, 2) == copies


def test_a_popular_adapter_is_worth_servers_by_its_share() -> None:
    assert copies_wanted(130, 1000, 100) == 13


def test_an_adapter_that_is_worth_two_servers_gets_the_second_before_one_is_full() -> None:
    loads, rng = {"a": load(6), "b": load(2)}, random.Random(1)
    assert choose_replica(["a"], ["b"], loads.__getitem__, rng, lambda: 2) == "b"
    assert choose_replica(["a"], ["b"], loads.__getitem__, rng, lambda: 1) == "a"
    loads["b"] = load(4)
    assert choose_replica(["a"], ["b"], loads.__getitem__, rng, lambda: 2) == "a"


def test_a_new_server_gets_half_of_what_one_has() -> None:
    demand = {"a": 8.0, "b": 4.0, "c": 3.0, "d": 1.0, "never": 0.0}
    assert share_of_new(demand, 2, 9) == ("a",)
    assert share_of_new(demand | {"a": 5.0}, 2, 9) == ("a", "d")


def test_a_new_server_gets_what_is_worth_several() -> None:
    assert share_of_new({"hot": 90.0, "cold": 10.0}, 2, 9) == ("hot", "cold")
    assert share_of_new({"hot": 90.0, "cold": 10.0}, 2, 1) == ("hot",)


def test_the_third_server_gets_a_third() -> None:
    assert share_of_new(dict.fromkeys("abcdef", 1.0), 3, 9) == ("a", "d")


def test_without_demand_a_new_server_has_nothing_to_load() -> None:
    assert share_of_new({}, 2, 9) == ()


def test_an_idle_server_relieves_a_busy_one() -> None:
    assert chosen({"a": load(4)}, {"b": load(1)}).keys() == {"b"}
    assert chosen({"a": load(4)}, {"b": load(2)}).keys() == {"a"}
    assert chosen({"a": load(3)}, {"b": load(0)}).keys() == {"a"}
