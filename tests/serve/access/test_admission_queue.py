"""Whose turn it is, and that everybody gets one: the queue itself, which knows no time but what it is told."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.access.capacity import Ticket
from tests.admission_house import House, tenants
from tests.examples import at_most


def test_requests_run_at_once_while_there_are_places() -> None:
    house = House(max_running=2, max_loras=2)
    states = [ticket.state for ticket in house.come("acme", times=3)]
    assert states == ["running", "running", "waiting"]


def test_a_request_for_one_adapter_too_many_waits_while_others_pass() -> None:
    house = House(max_running=8, max_loras=2)
    house.come("acme", "a")
    house.come("acme", "b")
    (third,) = house.come("acme", "c")
    (same, base) = (*house.come("acme", "a"), *house.come("acme", None))
    assert (third.state, same.state, base.state) == ("waiting", "running", "running")


def test_the_last_request_of_an_adapter_frees_its_slot() -> None:
    house = House(max_running=8, max_loras=1)
    first, second = house.come("acme", "a", times=2)
    (other,) = house.come("acme", "b")
    assert house.finish(first) == []
    assert house.finish(second) == [other]


def test_the_tenant_with_fewest_running_is_next() -> None:
    house = House(max_running=3, max_loras=1)
    first, *_ = house.come("busy", times=6)
    house.come("quiet")
    assert tenants(house.finish(first)) == ["quiet"]


def test_of_equal_tenants_the_oldest_request_is_next() -> None:
    house = House(max_running=1, max_loras=1)
    (running,) = house.come("acme")
    house.come("b")
    house.come("a")
    assert tenants(house.finish(running)) == ["b"]


def test_a_lower_priority_number_is_next() -> None:
    house = House(max_running=1, max_loras=1)
    (running,) = house.come("acme")
    house.come("later", priority=1)
    house.come("normal", priority=0)
    house.come("urgent", priority=-1)
    order = [running.ask.tenant_id]
    for _ in range(3):
        (running,) = house.finish(running)
        order.append(running.ask.tenant_id)
    assert order == ["acme", "urgent", "normal", "later"]


@pytest.mark.parametrize(("waited_s", "expected"), [(2.9, "urgent"), (3.0, "patient")])
def test_waiting_makes_up_for_priority_one_level_a_second(waited_s: float, expected: str) -> None:
    house = House(max_running=1, max_loras=1)
    (running,) = house.come("acme")
    house.come("patient", priority=3)
    house.now_s += waited_s
    house.come("urgent", priority=0)
    assert tenants(house.finish(running)) == [expected]


def test_a_flood_that_waits_long_does_not_overtake_those_who_come_later() -> None:
    house = House(max_running=1, max_loras=1)
    (running, *_) = house.come("flood", times=100)
    house.now_s += 30
    house.come("quiet")
    house.now_s += 0.1
    (first,) = house.finish(running)
    (second,) = house.finish(first)
    assert "quiet" in tenants([first, second])


def test_an_adapter_that_waits_too_long_gets_the_slot_that_was_held_longest() -> None:
    house = House(max_running=4, max_loras=2)
    a1, a2 = house.come("acme", "a", times=2)
    b1, _b2 = house.come("acme", "b", times=2)
    (c,) = house.come("single", "c")
    house.now_s += 1.1
    house.come("acme", "a", times=2)
    house.come("acme", "b", times=2)
    assert house.finish(a1)[0].ask.adapter == "b"
    assert house.finish(b1)[0].ask.adapter == "b"
    assert house.finish(a2) == [c]
    assert house.queue.running_by_adapter() == {"b": 3, "c": 1}


def test_an_adapter_lets_its_share_of_a_batch_in_before_it_must_drain() -> None:
    house = House(max_running=8, max_loras=2)
    house.come("acme", "a", times=4)
    house.come("acme", "b", times=1)
    house.come("single", "c")
    house.come("single", "d")
    house.now_s += 1.1
    assert [ticket.state for ticket in house.come("acme", "b", times=3)] == ["running"] * 3


def test_a_long_answer_in_the_slot_to_drain_holds_nobody_up_for_ever() -> None:
    house = House(max_running=4, max_loras=2)
    (_endless, _) = house.come("acme", "a", times=2)
    house.come("acme", "b", times=2)
    (c,) = house.come("single", "c")
    house.now_s += 1.1
    while c.state == "waiting":
        house.come("acme", "b")
        house.finish(next(ticket for ticket in house.of("running") if ticket.ask.adapter == "b"))
    assert house.num_completions <= 3 * 4


def test_requests_of_the_base_model_pass_those_that_wait_for_a_slot() -> None:
    house = House(max_running=4, max_loras=1)
    house.come("acme", "a", times=2)
    house.come("acme", "b")
    house.now_s += 60
    (base,) = house.come("acme", None)
    assert base.state == "running"


def test_when_the_one_who_waits_for_a_slot_leaves_its_adapter_is_open_again() -> None:
    house = House(max_running=4, max_loras=1)
    house.come("acme", "a", times=4)
    (gone,) = house.come("acme", "b")
    house.now_s += 1.1
    house.finish(house.of("running")[0])
    (held,) = house.come("acme", "a")
    assert held.state == "waiting"
    assert house.go(gone) == [held]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapters", "least_use"), [pytest.param("abc", 0.75, marks=pytest.mark.slow), ("abcdefgh", 0.6)]
)
def test_more_adapters_than_slots_leave_few_places_empty_and_all_get_their_turn(
    adapters: str, least_use: float
) -> None:
    house = House(max_running=8, max_loras=2)
    num_done, num_running = Counter[str | None](), 0
    for step in range(1000):
        waiting = Counter(ticket.ask.adapter for ticket in house.of("waiting"))
        for adapter in adapters:
            house.come("acme", adapter, times=10 - waiting[adapter])
        old = [ticket for ticket in house.of("running") if (ticket.sequence + step) % 10 == 0]
        num_done += Counter(ticket.ask.adapter for ticket in old)
        for ticket in old:
            house.finish(ticket)
        num_running += len(house.of("running"))
        house.now_s += 0.1
    assert num_running / 1000 > least_use * 8
    assert min(num_done[adapter] for adapter in adapters) > 0.5 * max(num_done.values())


def reasons(house: House) -> dict[str, int]:
    return {reason: num for reason, num in house.queue.waiting_by_reason(house.now_s).items() if num}


def test_reasons_say_what_those_who_wait_wait_for() -> None:
    house = House(max_running=3, max_loras=1)
    house.come("acme", "a", times=4)
    house.come("acme", "b", times=2)
    assert reasons(house) == {"capacity": 1, "adapter_slots": 2}
    house.come("umbrella", "a")
    assert reasons(house) == {"capacity": 1, "adapter_slots": 2, "tenant": 1}


def test_a_request_waits_for_its_adapters_load_and_says_so() -> None:
    house = House(max_running=3, max_loras=9, cold=frozenset("a"))
    house.come("acme", "a")
    assert reasons(house) == {"adapter_load": 1}


def test_a_request_that_is_held_back_for_a_slot_to_drain_waits_for_slots() -> None:
    house = House(max_running=4, max_loras=1)
    house.come("acme", "a", times=4)
    house.come("acme", "b")
    house.now_s += 1.1
    house.finish(house.of("running")[0])
    house.come("acme", "a")
    assert house.queue.waiting_by_reason(house.now_s)["adapter_slots"] == 2


def test_leaving_twice_counts_once() -> None:
    house = House(max_running=1, max_loras=1)
    running, waiting = house.come("acme", "a", times=2)
    for ticket in (waiting, waiting, running, running):
        house.queue.leave(ticket)
    assert (house.queue.num_waiting, house.queue.num_tenants, house.queue.running_by_adapter()) == (0, 0, {})


def test_of_too_many_the_newest_of_the_tenant_with_most_goes() -> None:
    house = House(max_running=1, max_loras=1)
    house.come("acme")
    *_, last_of_flood = house.come("flood", times=3)
    house.come("quiet", times=2)
    assert house.queue.last_to_run() is last_of_flood


def test_of_too_many_the_least_important_goes_first() -> None:
    house = House(max_running=1, max_loras=1)
    house.come("acme")
    (batch_job,) = house.come("acme", priority=5)
    house.come("acme", priority=0)
    assert house.queue.last_to_run() is batch_job


ARRIVALS = st.tuples(
    st.just("arrive"), st.sampled_from(["x", "y", "z"]), st.sampled_from([None, "a", "b", "c", "d"]), st.integers(0, 2)
)
STEPS = st.one_of(
    ARRIVALS,
    ARRIVALS,
    st.tuples(st.sampled_from(["running", "waiting"]), st.integers(0, 99)),
    st.tuples(st.just("sleep"), st.sampled_from([0.3, 1.1, 5.0])),
)


def take(house: House, step: tuple[Any, ...]) -> None:
    kind, *rest = step
    match kind:
        case "arrive":
            house.come(*rest)
        case "sleep":
            house.now_s += rest[0]
            house.settle()
        case _ if house.of(kind):
            house.go(house.of(kind)[rest[0] % len(house.of(kind))])


@given(st.integers(1, 5), st.integers(1, 3), st.lists(STEPS, max_size=60))
def test_limits_hold_nobody_waits_in_vain_and_nothing_is_left_behind(
    max_running: int, max_loras: int, steps: list[tuple[Any, ...]]
) -> None:
    house = House(max_running, max_loras)
    for step in steps:
        take(house, step)  # `House.check` runs after each
    for ticket in list(house.tickets):
        house.go(ticket)
    assert (house.queue.num_waiting, house.queue.num_tenants, house.queue.running_by_adapter()) == (0, 0, {})


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 3), st.lists(st.integers(0, 99), min_size=60, max_size=60))
def test_a_flood_of_running_adapters_is_passed_within_few_completions_whichever_end_first(
    max_running: int, max_loras: int, choices: list[int]
) -> None:
    house = House(max_running, max_loras)
    for number in range(3 * max_running):
        house.come("flood", f"flood-{number % max_loras}")
    (single,) = house.come("single", "third")
    for choice in choices:
        house.now_s += 0.1
        running = house.of("running")
        house.finish(running[choice % len(running)])
        house.come("flood", f"flood-{choice % max_loras}")
    # 11 until it is overdue, then a batch that passes, a share for each slot, and a batch that drains.
    assert single.state == "running" or single not in house.tickets
    assert house.num_completions == 60


@pytest.mark.slow
@at_most(10)
@given(st.integers(4, 8), st.integers(1, 2), st.integers(0, 2**32))
def test_in_any_mix_everybody_runs_within_a_bounded_number_of_completions(
    max_running: int, max_loras: int, seed: int
) -> None:
    house, rng = House(max_running, max_loras), random.Random(seed)
    came_at: dict[Ticket, int] = {}
    longest_wait = 0
    for _ in range(500):
        keep_busy(house, max_loras)
        if rng.random() < 0.1:
            house.come(rng.choice("wxyz"), rng.choice([None, *"abcde"]), rng.randrange(3))
        house.now_s += 0.1
        house.finish(rng.choice(house.of("running")))
        for ticket in house.of("waiting"):
            longest_wait = max(longest_wait, house.num_completions - came_at.setdefault(ticket, house.num_completions))
    assert longest_wait < 120


def keep_busy(house: House, num_adapters: int) -> None:
    """As many adapters as there are slots always have requests that wait."""
    waiting = Counter(ticket.ask.adapter for ticket in house.of("waiting"))
    for adapter in "ab"[:num_adapters]:
        house.come("flood", adapter, times=max(0, house.max_running - waiting[adapter]))


def test_demand_is_what_runs_and_waits() -> None:
    house = House(max_running=2, max_loras=1)
    first, *_ = house.come("acme", "a", times=3)
    house.come("other", "b")
    assert house.queue.demand == (4, 4)
    house.finish(first)
    assert house.queue.demand == (3, 3)
