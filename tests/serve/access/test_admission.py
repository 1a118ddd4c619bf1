"""Waiting for a turn: in, out, refused, gone, and nothing left behind. No stopwatch: the clock is ours."""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.access.admission import Admission
from serve.access.admission_queue import AdmissionQueue
from serve.access.capacity import Ask
from serve.errors import AdapterRefusedError, RateLimitedError
from tests.clock import FakeClock
from tests.examples import at_most

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class FakeLoader:
    """Loads that end when they are told to, and what is kept."""

    def __init__(self) -> None:
        self.resident = {"a", "b", "c"}
        self.kept: set[str] = set()
        self.loads: dict[str, asyncio.Future[None]] = {}

    @contextmanager
    def keep(self, adapter: str) -> Iterator[None]:
        self.kept.add(adapter)
        yield
        self.kept.remove(adapter)

    async def load(self, adapter: str) -> None:
        await self.loads.setdefault(adapter, asyncio.get_running_loop().create_future())
        self.resident.add(adapter)


def house(
    max_running: int,
    max_adapters: int,
    max_waiting: int = 100,
    max_wait_s: float = 60,
    clock: Callable[[], float] = time.monotonic,
    loader: FakeLoader | None = None,
    num_tenants: int = 1,
) -> Admission:
    loader = loader or FakeLoader()
    queue = AdmissionQueue(
        max_running,
        max_adapters,
        is_resident=lambda adapter: adapter in loader.resident,
        num_tenants=lambda: num_tenants,
    )
    return Admission(queue, loader, max_waiting, max_wait_s, clock)


async def held(admission: Admission, tenant_id: str = "acme", adapter: str | None = None) -> AsyncExitStack:
    """A place that is kept until its stack is closed."""
    stack = AsyncExitStack()
    await stack.enter_async_context(admission.enter(Ask(tenant_id, adapter)))
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
    admission = house(4, 2, max_waiting=100, max_wait_s=60, clock=clock)
    is_over, started = asyncio.Event(), count()
    most_adapters = []

    async def flood(adapter: str) -> None:
        while not is_over.is_set():
            async with admission.enter(Ask("flood", adapter)):
                next(started)
                clock.now_s += 0.05
                most_adapters.append(len(admission.running_by_adapter()))
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(flood(adapter)) for adapter in ("a", "b") for _ in range(8)]
    await asyncio.sleep(0)
    async with admission.enter(Ask("single", "c")):
        num_before = next(started)
        is_over.set()
    await asyncio.gather(*tasks)
    # 20 of the flood in the second until it is overdue, then a batch that passes and one that drains.
    assert num_before <= 20 + 3 * 4
    assert max(most_adapters) <= 2
    assert is_empty(admission)


async def test_a_place_goes_to_the_next_when_a_request_ends_in_an_error(clock: FakeClock) -> None:
    admission = house(1, 1, max_waiting=10, max_wait_s=60, clock=clock)
    failing = asyncio.create_task(fail(admission))
    await asyncio.sleep(0)
    task = await queued(admission, adapter="b")
    with pytest.raises(ZeroDivisionError):
        await failing
    async with await task:
        assert admission.running_by_adapter() == {"b": 1}
    assert is_empty(admission)


async def fail(admission: Admission) -> None:
    async with admission.enter(Ask("acme", "a")):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise ZeroDivisionError


async def test_a_client_that_leaves_while_it_waits_leaves_no_trace(clock: FakeClock) -> None:
    admission = house(1, 1, max_waiting=10, max_wait_s=60, clock=clock)
    async with await held(admission):
        task = await queued(admission, "other", "a")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(admission.waiting_by_reason().values())
    assert is_empty(admission)


async def test_a_client_that_leaves_just_as_its_turn_comes_passes_it_on(clock: FakeClock) -> None:
    admission = house(1, 1, max_waiting=10, max_wait_s=60, clock=clock)
    place = await held(admission)
    leaving, staying = await queued(admission), await queued(admission)
    await place.aclose()
    leaving.cancel()
    async with await staying:
        assert leaving.cancelled()
    assert is_empty(admission)


async def test_a_turn_that_comes_just_after_its_client_left_is_passed_on(clock: FakeClock) -> None:
    admission = house(1, 1, max_waiting=10, max_wait_s=60, clock=clock)
    place = await held(admission)
    leaving, staying = await queued(admission), await queued(admission)
    leaving.cancel()
    await place.aclose()
    async with await staying:
        assert leaving.cancelled()
    assert is_empty(admission)


async def test_a_request_that_waits_too_long_is_refused_with_the_reason(clock: FakeClock) -> None:
    admission = house(4, 1, max_waiting=10, max_wait_s=0.01, clock=clock)
    async with await held(admission, adapter="a"):
        with pytest.raises(RateLimitedError, match=r"waited 0\.01 s while all adapter slots were in use") as error:
            await held(admission, adapter="b")
    assert (error.value.status, error.value.retry_after_s) == (429, 0.01)
    assert is_empty(admission)


async def test_a_turn_that_comes_together_with_the_deadline_counts(clock: FakeClock) -> None:
    admission = house(1, 1, max_waiting=10, max_wait_s=0.01, clock=clock)
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
    admission = house(1, 1, max_waiting=1, max_wait_s=60, clock=clock)
    async with await held(admission):
        task = await queued(admission)
        with pytest.raises(RateLimitedError, match=r"the queue of 1 requests is full\. Retry in 60 s"):
            await held(admission)
    async with await task:
        assert admission.running_by_adapter() == {None: 1}
    assert is_empty(admission)


async def test_where_nobody_may_wait_requests_still_run_while_there_are_places(clock: FakeClock) -> None:
    admission = house(1, 1, max_waiting=0, max_wait_s=60, clock=clock)
    async with await held(admission):
        with pytest.raises(RateLimitedError):
            await held(admission)
    async with await held(admission):
        pass
    assert is_empty(admission)


async def test_a_tenant_that_fills_the_queue_makes_room_for_another(clock: FakeClock) -> None:
    admission = house(1, 1, max_waiting=3, max_wait_s=60, clock=clock)
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
    admission = house(1, 1, max_waiting=2, max_wait_s=60, clock=clock)
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
    admission = house(2, 2, max_waiting=100, max_wait_s=60)
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


@pytest.mark.slow
@at_most(40)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 6), st.integers(0, 2**32))
def test_however_clients_come_and_leave_the_house_is_empty_in_the_end(
    max_running: int, max_loras: int, max_waiting: int, seed: int
) -> None:
    asyncio.run(_clients_come_and_leave(house(max_running, max_loras, max_waiting, 60, FakeClock()), seed))


async def _clients_come_and_leave(admission: Admission, seed: int) -> None:
    rng = random.Random(seed)

    async def client(num_turns: int) -> None:
        async with admission.enter(Ask(rng.choice("xyz"), rng.choice([None, "a", "b", "c"]), rng.randrange(2))):
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


async def test_a_cold_load_holds_no_place_and_every_request_of_it_runs_after(clock: FakeClock) -> None:
    loader = FakeLoader()
    admission = house(1, 4, clock=clock, loader=loader)
    first, second = await queued(admission, adapter="cold"), await queued(admission, adapter="cold")
    async with await held(admission, "other", "a"):
        assert loader.kept == {"a", "cold"}
        clock.now_s += 2
        loader.loads["cold"].set_result(None)
        await asyncio.sleep(0)
        assert not first.done()
    async with await first:
        assert admission.running_by_adapter() == {"cold": 1}
    await (await second).aclose()
    assert loader.kept == set()
    assert is_empty(admission)


async def test_how_long_a_request_has_waited_for_a_load_is_known(clock: FakeClock) -> None:
    loader = FakeLoader()
    admission = house(1, 4, clock=clock, loader=loader)
    waiting = admission.enter(Ask("acme", "cold"))
    entering = asyncio.create_task(waiting.__aenter__())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.now_s += 2
    loader.loads["cold"].set_result(None)
    assert (await entering).load_s == 2
    await waiting.__aexit__(None, None, None)
    async with admission.enter(Ask("acme", "cold")) as warm:
        assert warm.load_s is None


async def test_who_waits_for_a_load_that_fails_is_told_why(clock: FakeClock) -> None:
    loader = FakeLoader()
    admission = house(2, 1, clock=clock, loader=loader)
    tasks = [await queued(admission, adapter="cold") for _ in range(2)]
    loader.loads["cold"].set_exception(AdapterRefusedError("'cold' is refused: it is broken"))
    for task in tasks:
        with pytest.raises(AdapterRefusedError, match="it is broken"):
            await task
    assert (loader.kept, is_empty(admission)) == (set(), True)
    async with await held(admission, adapter="a"):
        assert admission.running_by_adapter() == {"a": 1}


async def test_a_load_that_takes_long_does_not_count_as_waiting(clock: FakeClock) -> None:
    loader = FakeLoader()
    admission = house(2, 4, max_wait_s=0.01, clock=clock, loader=loader)
    task = await queued(admission, adapter="cold")
    await asyncio.sleep(0.05)
    loader.loads["cold"].set_result(None)
    async with await task:
        assert admission.running_by_adapter() == {"cold": 1}


async def test_where_nobody_may_wait_a_load_still_may(clock: FakeClock) -> None:
    loader = FakeLoader()
    admission = house(1, 4, max_waiting=0, clock=clock, loader=loader)
    task = await queued(admission, adapter="cold")
    with pytest.raises(RateLimitedError):
        await held(admission, adapter="cold")
    await asyncio.sleep(0)
    loader.loads["cold"].set_result(None)
    await (await task).aclose()
    assert is_empty(admission)


@pytest.mark.slow
async def test_a_slot_that_only_waits_is_taken_away_with_time_alone() -> None:
    admission = house(1, 1)
    place = await held(admission)
    idle = await queued(admission, adapter="a")
    other = await queued(admission, "other", adapter="b")
    while "b" not in admission.adapters:  # some two seconds
        await asyncio.sleep(0.05)
    await place.aclose()
    for task in asyncio.as_completed((idle, other)):
        await (await task).aclose()
    assert is_empty(admission)


async def test_what_was_used_counts_and_not_what_was_asked_for(clock: FakeClock) -> None:
    admission = house(1, 1, clock=clock, num_tenants=2)
    async with admission.enter(Ask("greedy", num_tokens=1), lambda: 500):
        tasks = {name: await queued(admission, name) for name in ("greedy", "modest")}
    async with await tasks["modest"]:
        assert not tasks["greedy"].done()
    await (await tasks["greedy"]).aclose()


async def test_a_429_says_how_much_its_tenant_holds(clock: FakeClock) -> None:
    admission = house(8, 1, max_wait_s=0.01, clock=clock, num_tenants=2)
    async with admission.enter(Ask("acme", num_sequences=7)):
        with pytest.raises(RateLimitedError, match="this tenant held 7 of the 8 sequences") as error:
            await held(admission)
    assert error.value.reason == "queue_timeout"
