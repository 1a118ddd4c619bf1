"""What a request costs decides whose turn it is: sequences, tokens, loads. A simulated engine, and a clock of ours."""

import random
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.access.adapter_slots import MAX_LOADS
from serve.access.capacity import Ticket, reserved
from serve.access.fairness import TokenCounters
from tests.admission_house import House, tenants
from tests.examples import at_most

GREEDY_SIZE = 28  # 14 prompts, two answers each: all but the reserve of 32 places


def flood(house: House, num_tokens: int = 28 * 2048) -> None:
    house.come("greedy", times=20, size=GREEDY_SIZE, num_tokens=num_tokens)


def test_a_request_takes_a_place_for_each_of_its_sequences() -> None:
    house = House(max_running=32, max_loras=1)
    states = [ticket.state for ticket in house.come("acme", times=3, size=16)]
    assert states == ["running", "running", "waiting"]


def test_a_tenant_that_holds_nothing_runs_at_once_in_a_flood() -> None:
    house = House(32, 1, num_tenants=2)
    flood(house)
    (small,) = house.come("small", size=4)
    assert small.state == "running"


def test_the_reserve_is_free_again_once_there_is_room_outside() -> None:
    house = House(32, 1, num_tenants=3)
    house.come("greedy", times=28)
    house.come("small", size=4)
    for ticket in house.of("running")[:4]:
        house.finish(ticket)
    house.come("greedy", times=4)
    (other,) = house.come("other", size=4)
    assert other.state == "running"


@pytest.mark.parametrize(("num_places", "expected"), [(1, 0), (2, 1), (8, 1), (16, 2), (32, 4), (256, 32)])
def test_an_eighth_of_the_places_is_the_reserve(num_places: int, expected: int) -> None:
    assert reserved(num_places) == expected


def test_a_single_tenant_has_all_places() -> None:
    house = House(32, 1, num_tenants=1)
    assert [ticket.state for ticket in house.come("acme", times=32)] == ["running"] * 32


@at_most(30)
@given(st.integers(5, 28), st.integers(0, 2**32))
def test_a_larger_request_of_a_small_tenant_waits_for_one_of_the_flood_only(size: int, seed: int) -> None:
    house, rng = House(32, 1, num_tenants=2), random.Random(seed)
    flood(house)
    (small,) = house.come("small", size=size)
    while small.state == "waiting":
        house.finish(rng.choice(house.of("running")), num_tokens=28 * 2048)
    assert house.num_completions <= 1


@pytest.mark.parametrize("size", [2, 9, 28])
def test_small_requests_do_not_keep_a_large_one_out(size: int) -> None:
    house = House(32, 1, num_tenants=4)
    house.come("crowd-1", times=200)
    house.come("crowd-2", times=200)
    (large,) = house.come("large", size=size, num_tokens=9)
    running = deque(house.of("running"))
    while large.state == "waiting":
        running += [*house.come("newcomer"), *house.finish(running.popleft())]
        running = deque(ticket for ticket in running if ticket.state == "running")
    # A batch passes it, then a batch ends.
    assert house.num_completions <= 2 * 32


def test_large_requests_do_not_keep_small_ones_out() -> None:
    house = House(32, 1, num_tenants=4)
    flood(house)
    house.come("large", times=5, size=20)
    small = house.come("small", times=3)
    while any(ticket.state == "waiting" for ticket in small):
        house.finish(house.of("running")[0], num_tokens=28 * 2048)
    assert house.num_completions <= 3


def test_while_a_large_one_waits_a_batch_of_others_passes_and_no_more() -> None:
    house = House(8, 1)
    house.come("acme", times=4)
    (large,) = house.come("large", size=8, num_tokens=8)
    num_passed = 0
    while large.state == "waiting":
        num_passed += sum(ticket.state == "running" for ticket in house.come("crowd"))
        house.finish(house.of("running")[0])
    assert 8 <= num_passed <= 8 + 4


@pytest.mark.parametrize("num_tenants", [1, 2])
def test_a_tenants_own_small_requests_do_not_keep_its_large_one_out(num_tenants: int) -> None:
    house = House(8, 2, num_tenants=num_tenants)
    house.come("acme", "a", times=6)
    (large,) = house.come("acme", "b", size=6)
    house.come("acme", "a", times=100)
    running = deque(house.of("running"))
    while large.state == "waiting":
        running += house.finish(running.popleft())
        assert house.num_completions <= 2 * 8


def serve(house: House, rng: random.Random, num_steps: int, used: dict[str, int]) -> Counter[str]:
    """End requests in any order, each replaced by one of its kind; returns what each tenant has used."""
    served: Counter[str] = Counter()
    for _ in range(num_steps):
        ticket = rng.choice(house.of("running"))
        num_tokens = used[ticket.ask.tenant_id]
        served[ticket.ask.tenant_id] += num_tokens
        house.finish(ticket, num_tokens)
        ask = ticket.ask
        house.come(ask.tenant_id, ask.adapter, ask.priority, size=ask.num_sequences, num_tokens=ask.num_tokens)
        house.now_s += 0.1
    return served


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "asked", "used"),
    [
        pytest.param(28, 28 * 100, 28 * 100, id="many-sequences"),
        pytest.param(1, 5, 5, id="short", marks=pytest.mark.slow),
        pytest.param(1, 2000, 5, id="asks-for-more-than-it-uses"),
        pytest.param(2, 50, 300, id="uses-more-than-it-asks-for", marks=pytest.mark.slow),
    ],
)
def test_tenants_that_always_wait_get_the_same_tokens(size: int, asked: int, used: int) -> None:
    house = House(32, 1, num_tenants=2)
    house.come("fat", times=60, size=size, num_tokens=asked)
    house.come("thin", times=60, num_tokens=100)
    served = serve(house, random.Random(0), 4000, {"fat": used, "thin": 100})
    most_at_a_time = 32 * max(100, asked, used)
    assert abs(served["fat"] - served["thin"]) <= 2 * most_at_a_time
    assert min(served.values()) > 0


def test_a_tenant_does_not_gain_by_going_away() -> None:
    counters = TokenCounters()
    for tenant_id in ("stays", "comes"):
        counters.arrive(tenant_id)
    for _ in range(10):
        counters.start("comes", 100)
        counters.stop("comes", 100, 100)
        counters.leave("comes")
        counters.arrive("comes")
    assert counters.tokens("comes") - counters.tokens("stays") == 1000


def test_a_newcomer_does_not_pay_for_what_others_ask_for_and_do_not_use() -> None:
    counters = TokenCounters()
    counters.arrive("asks")
    counters.start("asks", 1_000_000)
    counters.arrive("new")
    counters.stop("asks", 1_000_000, 10)
    assert counters.tokens("new") <= counters.tokens("asks") == 10


def test_tenants_that_are_gone_and_are_no_higher_are_forgotten() -> None:
    counters = TokenCounters()
    counters.arrive("stays")
    for number in range(100):
        counters.arrive(f"t-{number}")
        counters.start("stays", 1)
        counters.stop("stays", 1, 1)
        counters.leave(f"t-{number}")
    assert len(counters) == 1
    counters.leave("stays")
    assert len(counters) == 0


def test_a_cold_load_holds_no_place() -> None:
    house = House(2, 9, cold=frozenset("a"))
    (cold,) = house.come("acme", "a")
    warm = house.come("acme", "b", times=2)
    assert (cold.state, [ticket.state for ticket in warm]) == ("waiting", ["running"] * 2)
    house.now_s += 3
    assert house.loaded("a") == []
    assert house.finish(warm[0]) == [cold]
    assert cold.load_s == 3


def test_a_tenant_cannot_fill_the_loads() -> None:
    cold = frozenset(f"a{number}" for number in range(20)) | {"b"}
    house = House(32, 64, num_tenants=2, cold=cold)
    for number in range(20):
        house.come("greedy", f"a{number}")
    assert len(house.loading) == MAX_LOADS - 1
    house.come("small", "b")
    assert house.loading[-1] == "b"


def test_a_load_that_fails_frees_its_slot() -> None:
    house = House(2, 1, cold=frozenset("a"))
    (cold,) = house.come("acme", "a")
    house.loading.remove("a")
    assert house.queue.not_loaded("a") == [cold]
    house.go(cold)
    assert list(house.queue.adapters) == []


def test_adapters_that_only_wait_keep_nobody_out_for_long() -> None:
    """The defaults: 32 places, 64 slots. All slots are held by requests that wait behind their own tenant's."""
    house = House(32, 64, num_tenants=2)
    house.come("greedy", size=GREEDY_SIZE)
    for number in range(80):
        house.come("greedy", f"a{number}", size=GREEDY_SIZE)
    assert len(house.queue.adapters) == 64
    (small,) = house.come("small", "b")
    assert small.state == "waiting"
    house.now_s += 1.1
    assert house.settle() == [small]


def test_the_kv_cache_is_shared_as_the_places_are() -> None:
    house = House(32, 1, num_tenants=2, kv_tokens=8000)
    greedy = house.come("greedy", times=10, num_tokens=1000)
    assert [ticket.state for ticket in greedy].count("running") == 7
    (small,) = house.come("small", num_tokens=1000)
    assert small.state == "running"


def test_a_request_for_more_tokens_than_there_are_runs_once_nobody_else_does() -> None:
    house = House(32, 1, num_tenants=2, kv_tokens=8000)
    (first,) = house.come("acme", num_tokens=500)
    (huge,) = house.come("acme", num_tokens=9000)
    assert huge.state == "waiting"
    assert house.finish(first) == [huge]


def test_a_single_tenant_may_overfill_the_kv_cache() -> None:
    house = House(32, 1, kv_tokens=8000)
    assert {ticket.state for ticket in house.come("acme", times=32, num_tokens=2000)} == {"running"}


ARRIVALS = st.tuples(
    st.just("arrive"),
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from([None, "a", "b", "c", "d"]),
    st.integers(0, 2),
    st.integers(1, 7),
    st.integers(1, 500),
)
STEPS = st.one_of(
    ARRIVALS,
    ARRIVALS,
    st.tuples(st.just("running"), st.integers(0, 99), st.integers(0, 900)),
    st.tuples(st.just("waiting"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("loaded"), st.integers(0, 99)),
    st.tuples(st.just("cold"), st.sampled_from("abcd")),
    st.tuples(st.just("sleep"), st.sampled_from([0.3, 1.1, 5.0])),
)


def take(house: House, step: tuple[Any, ...]) -> None:
    kind, *rest = step
    match kind:
        case "arrive":
            tenant_id, adapter, priority, size, num_tokens = rest
            house.come(tenant_id, adapter, priority, size=min(size, most(house)), num_tokens=num_tokens)
        case "sleep":
            house.now_s += rest[0]
            house.settle()
        case "loaded" if house.loading:
            house.loaded(house.loading[rest[0] % len(house.loading)])
        case "cold" if rest[0] not in house.queue.adapters:
            house.cold.add(rest[0])
        case "running" | "waiting" if house.of(kind):
            house.go(house.of(kind)[rest[0] % len(house.of(kind))], rest[1])


def most(house: House) -> int:
    return house.queue.capacity.without_reserve(house.max_running)


@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.sampled_from([None, 1000]),
    st.lists(STEPS, max_size=80),
)
def test_limits_hold_whatever_comes_and_everybody_runs_in_the_end(
    max_running: int, max_loras: int, num_tenants: int, kv_tokens: int | None, steps: list[tuple[Any, ...]]
) -> None:
    house = House(max_running, max_loras, num_tenants, frozenset("ab"), kv_tokens)
    for step in steps:
        take(house, step)  # `House.check` runs after each
    for _ in range(3 * len(house.tickets) + 1):
        house.now_s += 1.1
        for adapter in tuple(house.loading):
            house.loaded(adapter)
        house.settle()
        for ticket in house.of("running")[:1]:
            house.finish(ticket)
    assert house.tickets == []
    assert (house.queue.num_waiting, house.queue.num_tenants, list(house.queue.adapters)) == (0, 0, [])


@pytest.mark.slow
@at_most(10)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 2**32))
def test_no_tenant_adapter_or_size_starves(max_running: int, max_loras: int, seed: int) -> None:
    house, rng = House(max_running, max_loras, num_tenants=5), random.Random(seed)
    came_at: dict[Ticket, int] = {}
    longest_wait = 0
    for _ in range(600):
        while len(house.of("waiting")) < 20:
            come_by_chance(house, rng)
        house.now_s += 0.1
        house.settle()
        house.finish(rng.choice(house.of("running")), rng.randrange(200))
        for ticket in house.of("waiting"):
            longest_wait = max(longest_wait, house.num_completions - came_at.setdefault(ticket, house.num_completions))
    assert longest_wait < 400


def come_by_chance(house: House, rng: random.Random) -> None:
    adapter = rng.choice([None, *"aaaaaabbbbbbcde"])
    size = rng.choice([1, 1, 1, 2, most(house)])
    house.come(rng.choice("vwxyz"), adapter, rng.randrange(3), size=min(size, most(house)), num_tokens=100 * size)


def test_newcomers_come_before_those_who_hold_something() -> None:
    house = House(8, 1, num_tenants=4)
    house.come("busy", times=20, num_tokens=10)
    first, second = (*house.come("new-1"), *house.come("new-2"))
    assert (first.state, second.state) == ("running", "waiting")
    assert "new-2" in tenants(house.finish(house.of("running")[0]))
