"""Requests of batches in the queue: behind clients, outside the reserve, and without a say in clients' turns."""

import pytest

from serve.access.admission import Admission, ClientLoad
from serve.access.admission_queue import AdmissionQueue
from serve.access.capacity import Ask, Ticket
from serve.engine.protocol import BACKGROUND_PRIORITY
from serve.errors import RateLimitedError
from tests.clock import FakeClock
from tests.serve.access.test_admission import FakeLoader, held

AGE_S = 1.0


def line(adapter: str | None = None, num_sequences: int = 1, tenant_id: str = "acme/batch", num_tokens: int = 1) -> Ask:
    return Ask(tenant_id, adapter, BACKGROUND_PRIORITY, num_sequences, num_tokens, is_batch=True)


def queue(max_sequences: int = 4, max_adapters: int = 2, num_tenants: int = 1) -> AdmissionQueue:
    return AdmissionQueue(max_sequences, max_adapters, AGE_S, num_tenants=lambda: num_tenants)


def arrive(queue: AdmissionQueue, ask: Ask, now_s: float = 0.0) -> Ticket:
    """A request that comes; whatever may start then is started."""
    ticket = queue.arrive(ask, now_s)
    start(queue, now_s)
    return ticket


def start(queue: AdmissionQueue, now_s: float = 0.0) -> None:
    while queue.next_load(now_s) is not None:
        pass
    while queue.admit_next(now_s) is not None:
        pass


def test_a_client_goes_before_a_batch_that_has_waited_for_hours() -> None:
    places = queue()
    running = [arrive(places, Ask("other")) for _ in range(4)]
    waiting = arrive(places, line())
    client = arrive(places, Ask("acme"), 3600.0)
    places.leave(running[0])
    start(places, 3600.0)
    assert (client.state, waiting.state) == ("running", "waiting")


def test_a_batch_does_not_fill_the_room_that_a_client_waits_for() -> None:
    places = queue()
    arrive(places, Ask("other"))
    client = arrive(places, Ask("acme", num_sequences=4))
    assert arrive(places, line()).state == "waiting"
    assert client.state == "waiting"


def test_a_client_passes_a_batch_whatever_it_has_used() -> None:
    places = queue()
    arrive(places, line(num_sequences=3))
    waiting = arrive(places, line(num_sequences=2))
    assert arrive(places, Ask("acme", num_tokens=10**6)).state == "running"
    assert waiting.state == "waiting"


def test_the_reserve_is_for_clients_only() -> None:
    places = queue(max_sequences=8, num_tenants=3)
    lines = [arrive(places, line()) for _ in range(8)] + [arrive(places, line(tenant_id="other/batch"))]
    assert sum(each.state == "running" for each in lines) == 7
    assert arrive(places, Ask("acme")).state == "running"


def test_what_a_batch_has_used_is_not_charged_to_its_tenant() -> None:
    places = queue(max_sequences=1)
    places.leave(arrive(places, line(num_tokens=1000)), 1000)
    running = arrive(places, Ask("third"))
    mine, other = arrive(places, Ask("acme")), arrive(places, Ask("other"))
    places.leave(running, 1)
    start(places)
    assert (mine.state, other.state) == ("running", "waiting")


def test_a_batch_gives_newcomers_no_start() -> None:
    places = queue(max_sequences=2)
    arrive(places, line())  # stays, and has used nothing
    running = arrive(places, Ask("acme", num_tokens=1000))
    mine = arrive(places, Ask("acme"))
    places.leave(running, 1000)
    start(places)
    mine_too, newcomer = arrive(places, Ask("acme")), arrive(places, Ask("other"))
    places.leave(mine, 0)
    start(places)
    assert (mine_too.state, newcomer.state) == ("running", "waiting")


def test_a_batch_closes_no_adapter_to_its_clients() -> None:
    places = queue(max_adapters=1)
    arrive(places, Ask("acme", "a"))
    waiting = arrive(places, line("b"))
    running = [arrive(places, Ask("acme", "a"), 100.0 + number) for number in range(3)]
    for number in range(20):
        places.leave(running.pop(0))
        running.append(arrive(places, Ask("acme", "a"), 200.0 + number))
    assert {each.state for each in running} == {"running"}
    assert waiting.state == "waiting"


def test_of_too_many_a_batch_is_refused_first() -> None:
    places = queue(max_sequences=1)
    for _ in range(4):
        arrive(places, Ask("acme"))
    waiting = arrive(places, line())
    arrive(places, Ask("acme"))
    assert places.last_to_run() is waiting


@pytest.mark.anyio
async def test_the_load_of_clients_leaves_batches_out() -> None:
    clock = FakeClock()
    admission = Admission(queue(), FakeLoader(), max_waiting=0, max_wait_s=60, clock=clock)
    assert admission.client_load() == ClientLoad(4, 0, 0, float("inf"))
    async with admission.enter(line(num_sequences=3)):
        assert admission.client_load().quiet_s == float("inf")
        clock.now_s += 5
        client = await held(admission)
        clock.now_s += 5
        assert admission.client_load() == ClientLoad(4, 1, 0, 0.0)
        with pytest.raises(RateLimitedError):
            await held(admission)
        await client.aclose()
        clock.now_s += 2
        assert admission.client_load() == ClientLoad(4, 0, 0, 2.0)
