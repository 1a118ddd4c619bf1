"""Whose turn it is, and that everybody gets one. No stopwatch: the clock is ours."""

import asyncio
import random
import sys
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.admission import Admission, AdmissionQueue, Ticket
from serve.errors import RateLimitedError

pytestmark = pytest.mark.anyio

AGE_S = 1.0


class House:
    """A queue with everybody who came to it. After each step it checks what must always hold."""

    def __init__(self, max_running: int, max_loras: int) -> None:
        self.max_running, self.max_loras = max_running, max_loras
        self.queue = AdmissionQueue(max_running, max_loras, AGE_S)
        self.now_s = 1000.0
        self.num_completions = 0
        self.tickets: list[Ticket] = []

    def of(self, state: str) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.state == state]

    def come(self, tenant_id: str, adapter: str | None = None, priority: int = 0, *, times: int = 1) -> list[Ticket]:
        """Requests that come one after the other, each let in at once where it may run."""
        came = []
        for _ in range(times):
            came.append(self.queue.arrive(tenant_id, adapter, priority, self.now_s))
            self.tickets.append(came[-1])
            self.settle()
        return came

    def finish(self, ticket: Ticket) -> list[Ticket]:
        """End a request; returns those that run in its place."""
        assert ticket.state == "running"
        self.num_completions += 1
        return self.go(ticket)

    def go(self, ticket: Ticket) -> list[Ticket]:
        self.queue.leave(ticket)
        self.tickets.remove(ticket)
        return self.settle()

    def settle(self) -> list[Ticket]:
        admitted = list(iter(lambda: self.queue.admit_next(self.now_s), None))
        self.check()
        return admitted

    def check(self) -> None:
        running, waiting = self.of("running"), self.of("waiting")
        slots = {ticket.adapter for ticket in running} - {None}
        assert len(running) <= self.max_running
        assert len(slots) <= self.max_loras
        assert self.queue.running_by_adapter() == dict(Counter(ticket.adapter for ticket in running))
        assert sum(self.queue.waiting_by_reason(self.now_s).values()) == self.queue.num_waiting == len(waiting)
        assert self.queue.num_tenants == len({ticket.tenant_id for ticket in self.tickets})
        if len(running) < self.max_running:
            assert self.adapters_that_fit(waiting, slots) & {ticket.adapter for ticket in waiting} == set()

    def adapters_that_fit(self, waiting: list[Ticket], slots: set[str | None]) -> set[str | None]:
        """Those that nothing keeps out: neither the limit of slots, nor somebody who waited too long for one."""
        wanted = {ticket.adapter for ticket in waiting} - slots - {None}
        if len(slots) < self.max_loras:
            return {None} | slots | wanted
        is_overdue = any(t.adapter in wanted and self.now_s - t.arrived_s > AGE_S for t in waiting)
        return {None} if is_overdue else {None} | slots


def tenants(tickets: list[Ticket]) -> list[str]:
    return [ticket.tenant_id for ticket in tickets]


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
    order = [running.tenant_id]
    for _ in range(3):
        (running,) = house.finish(running)
        order.append(running.tenant_id)
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
    assert house.finish(a1)[0].adapter == "b"
    assert house.finish(b1)[0].adapter == "b"
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
        house.finish(next(ticket for ticket in house.of("running") if ticket.adapter == "b"))
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


@pytest.mark.parametrize(("adapters", "least_use"), [("abc", 0.75), ("abcdefgh", 0.6)])
def test_more_adapters_than_slots_leave_few_places_empty_and_all_get_their_turn(
    adapters: str, least_use: float
) -> None:
    house = House(max_running=8, max_loras=2)
    num_done, num_running = Counter[str | None](), 0
    for step in range(1000):
        waiting = Counter(ticket.adapter for ticket in house.of("waiting"))
        for adapter in adapters:
            house.come("acme", adapter, times=10 - waiting[adapter])
        old = [ticket for ticket in house.of("running") if (ticket.sequence + step) % 10 == 0]
        num_done += Counter(ticket.adapter for ticket in old)
        for ticket in old:
            house.finish(ticket)
        num_running += len(house.of("running"))
        house.now_s += 0.1
    assert num_running / 1000 > least_use * 8
    assert min(num_done[adapter] for adapter in adapters) > 0.5 * max(num_done.values())


def test_reasons_say_what_those_who_wait_wait_for() -> None:
    house = House(max_running=3, max_loras=1)
    house.come("acme", "a", times=4)
    house.come("acme", "b", times=2)
    assert house.queue.waiting_by_reason(house.now_s) == {"capacity": 1, "adapter_slots": 2, "tenant": 0}
    house.come("umbrella", "a")
    assert house.queue.waiting_by_reason(house.now_s) == {"capacity": 1, "adapter_slots": 2, "tenant": 1}


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


@settings(deadline=None)
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


@settings(deadline=None)
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


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32))
def test_in_any_mix_everybody_runs_within_a_bounded_number_of_completions(
    max_running: int, max_loras: int, seed: int
) -> None:
    house, rng = House(max_running, max_loras), random.Random(seed)
    came_at: dict[Ticket, int] = {}
    longest_wait = 0
    for _ in range(20):
        come_by_chance(house, rng)
    for _ in range(300):
        house.now_s += 0.1
        house.finish(rng.choice(house.of("running")))
        come_by_chance(house, rng)
        for ticket in house.of("waiting"):
            longest_wait = max(longest_wait, house.num_completions - came_at.setdefault(ticket, house.num_completions))
    assert longest_wait < 200


def come_by_chance(house: House, rng: random.Random) -> None:
    adapter = rng.choice([None, "a", "a", "b", "b", "c", "d", "e"])
    house.come(rng.choice("wxyz"), adapter, rng.randrange(3))


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def held(admission: Admission, tenant_id: str = "acme", adapter: str | None = None) -> AsyncExitStack:
    """A place that is kept until its stack is closed."""
    stack = AsyncExitStack()
    await stack.enter_async_context(admission.enter(tenant_id, adapter))
    return stack


async def queued(
    admission: Admission, tenant_id: str = "acme", adapter: str | None = None
) -> asyncio.Task[AsyncExitStack]:
    """A request that waits now; its task ends with the place."""
    task = asyncio.create_task(held(admission, tenant_id, adapter))
    await asyncio.sleep(0)
    assert not task.done()
    return task


def is_empty(admission: Admission) -> bool:
    return not any(admission.waiting_by_reason().values()) and not admission.running_by_adapter()


async def test_a_single_request_for_a_third_adapter_gets_through_a_flood_of_two(clock: FakeClock) -> None:
    admission = Admission(4, 2, max_waiting=100, max_wait_s=60, clock=clock)
    is_over, started = asyncio.Event(), count()
    most_adapters = []

    async def flood(adapter: str) -> None:
        while not is_over.is_set():
            async with admission.enter("flood", adapter):
                next(started)
                clock.now_s += 0.05
                most_adapters.append(len(admission.running_by_adapter()))
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(flood(adapter)) for adapter in ("a", "b") for _ in range(8)]
    await asyncio.sleep(0)
    async with admission.enter("single", "c"):
        num_before = next(started)
        is_over.set()
    await asyncio.gather(*tasks)
    # 20 of the flood in the second until it is overdue, then a batch that passes and one that drains.
    assert num_before <= 20 + 3 * 4
    assert max(most_adapters) <= 2
    assert is_empty(admission)


async def test_a_place_goes_to_the_next_when_a_request_ends_in_an_error(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=10, max_wait_s=60, clock=clock)
    failing = asyncio.create_task(fail(admission))
    await asyncio.sleep(0)
    task = await queued(admission, adapter="b")
    with pytest.raises(ZeroDivisionError):
        await failing
    async with await task:
        assert admission.running_by_adapter() == {"b": 1}
    assert is_empty(admission)


async def fail(admission: Admission) -> None:
    async with admission.enter("acme", "a"):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise ZeroDivisionError


async def test_a_client_that_leaves_while_it_waits_leaves_no_trace(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=10, max_wait_s=60, clock=clock)
    async with await held(admission):
        task = await queued(admission, "other", "a")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(admission.waiting_by_reason().values())
    assert is_empty(admission)


async def test_a_client_that_leaves_just_as_its_turn_comes_passes_it_on(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=10, max_wait_s=60, clock=clock)
    place = await held(admission)
    leaving, staying = await queued(admission), await queued(admission)
    await place.aclose()
    leaving.cancel()
    async with await staying:
        assert leaving.cancelled()
    assert is_empty(admission)


async def test_a_turn_that_comes_just_after_its_client_left_is_passed_on(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=10, max_wait_s=60, clock=clock)
    place = await held(admission)
    leaving, staying = await queued(admission), await queued(admission)
    leaving.cancel()
    await place.aclose()
    async with await staying:
        assert leaving.cancelled()
    assert is_empty(admission)


async def test_a_request_that_waits_too_long_is_refused_with_the_reason(clock: FakeClock) -> None:
    admission = Admission(4, 1, max_waiting=10, max_wait_s=0.01, clock=clock)
    async with await held(admission, adapter="a"):
        with pytest.raises(RateLimitedError, match=r"waited 0\.01 s, and all adapter slots were in use") as error:
            await held(admission, adapter="b")
    assert (error.value.status, error.value.retry_after_s) == (429, 0.01)
    assert is_empty(admission)


async def test_a_turn_that_comes_together_with_the_deadline_counts(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=10, max_wait_s=0.01, clock=clock)
    place = await held(admission)
    task = await queued(admission, adapter="a")
    asyncio.get_running_loop().call_later(0.001, close_now, place)
    time.sleep(0.02)  # both timers are due now, and the deadline is the later one
    async with await task:
        assert admission.running_by_adapter() == {"a": 1}
    assert is_empty(admission)


def close_now(place: AsyncExitStack) -> None:
    with suppress(StopIteration):
        place.aclose().send(None)


async def test_where_too_many_wait_the_next_is_refused_at_once(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=1, max_wait_s=60, clock=clock)
    async with await held(admission):
        task = await queued(admission)
        with pytest.raises(RateLimitedError, match=r"its queue of 1 requests is full\. Retry in 60 s"):
            await held(admission)
    async with await task:
        assert admission.running_by_adapter() == {None: 1}
    assert is_empty(admission)


async def test_where_nobody_may_wait_requests_still_run_while_there_are_places(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=0, max_wait_s=60, clock=clock)
    async with await held(admission):
        with pytest.raises(RateLimitedError):
            await held(admission)
    async with await held(admission):
        pass
    assert is_empty(admission)


async def test_a_tenant_that_fills_the_queue_makes_room_for_another(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=3, max_wait_s=60, clock=clock)
    place = await held(admission, "flood")
    first, second, newest = [await queued(admission, "flood") for _ in range(3)]
    quiet = await queued(admission, "quiet")
    with pytest.raises(RateLimitedError, match="queue of 3 requests is full"):
        await newest
    await place.aclose()
    for task in asyncio.as_completed((first, second, quiet)):
        await (await task).aclose()
    assert is_empty(admission)


async def test_a_client_that_leaves_just_as_it_is_refused_leaves_no_trace(clock: FakeClock) -> None:
    admission = Admission(1, 1, max_waiting=2, max_wait_s=60, clock=clock)
    place = await held(admission, "flood")
    first, newest = await queued(admission, "flood"), await queued(admission, "flood")
    quiet = await queued(admission, "quiet")  # refuses the newest, which has not run since
    newest.cancel()
    with pytest.raises(asyncio.CancelledError):
        await newest
    await place.aclose()
    for task in asyncio.as_completed((first, quiet)):
        await (await task).aclose()
    assert is_empty(admission)


async def test_metrics_may_be_read_from_another_thread_at_any_time() -> None:
    admission = Admission(2, 2, max_waiting=100, max_wait_s=60)
    is_over = threading.Event()

    def scrape() -> int:
        num_scrapes = 0
        while not is_over.is_set():
            admission.waiting_by_reason()
            admission.running_by_adapter()
            num_scrapes += 1
        return num_scrapes

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        scraping = asyncio.create_task(asyncio.to_thread(scrape))
        for seed in range(10):
            await _clients_come_and_leave(admission, seed)
    finally:
        is_over.set()
        sys.setswitchinterval(interval_s)
    assert await scraping > 0


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 6), st.integers(0, 2**32))
def test_however_clients_come_and_leave_the_house_is_empty_in_the_end(
    max_running: int, max_loras: int, max_waiting: int, seed: int
) -> None:
    asyncio.run(_clients_come_and_leave(Admission(max_running, max_loras, max_waiting, 60, FakeClock()), seed))


async def _clients_come_and_leave(admission: Admission, seed: int) -> None:
    rng = random.Random(seed)

    async def client(num_turns: int) -> None:
        async with admission.enter(rng.choice("xyz"), rng.choice([None, "a", "b", "c"]), rng.randrange(2)):
            for _ in range(num_turns):
                await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(60):
        tasks.append(asyncio.create_task(client(rng.randrange(4))))
        if rng.random() < 0.4:
            rng.choice(tasks).cancel()
        if rng.random() < 0.7:
            await asyncio.sleep(0)
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=10)
    assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError, RateLimitedError}
    assert is_empty(admission)
