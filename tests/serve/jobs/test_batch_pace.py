"""Lines of batches take what clients leave free, in turn between tenants, and retreat while clients wait."""

import asyncio
from dataclasses import replace

import pytest

from serve.access.admission import ClientLoad
from serve.jobs.batch_pace import QUIET_AFTER_S, Pacer, max_batch_sequences

CALM = ClientLoad(max_sequences=32, num_sequences=0, num_waiting=0, quiet_s=float("inf"))
BUSY = replace(CALM, num_sequences=3, quiet_s=0.0)


@pytest.mark.parametrize(
    ("load", "most"),
    [
        pytest.param(CALM, 28, id="nobody is here: all but an eighth"),
        pytest.param(BUSY, 8, id="clients are here: a quarter"),
        pytest.param(replace(BUSY, num_sequences=25), 3, id="no more than is free"),
        pytest.param(replace(BUSY, num_sequences=32), 0, id="nothing is free"),
        pytest.param(replace(BUSY, num_waiting=1), 0, id="a client waits"),
        pytest.param(replace(CALM, quiet_s=QUIET_AFTER_S - 0.1), 8, id="the last client has just left"),
        pytest.param(replace(CALM, quiet_s=QUIET_AFTER_S + 1), 16, id="calm for a second"),
        pytest.param(replace(CALM, max_sequences=1), 1, id="one place"),
        pytest.param(ClientLoad(2, 1, 0, 0.0), 1, id="the other of two places"),
    ],
)
def test_batches_take_what_clients_leave(load: ClientLoad, most: int) -> None:
    assert max_batch_sequences(load) == most


class Places:
    """A pacer whose clients can be changed."""

    def __init__(self, load: ClientLoad) -> None:
        self.load = load
        self.pacer = Pacer(lambda: self.load)

    async def ask(self, owner: str, num_sequences: int = 1) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.pacer.take(owner, num_sequences))
        await asyncio.sleep(0)
        return task


@pytest.mark.slow
@pytest.mark.anyio
async def test_no_line_starts_while_a_client_waits() -> None:
    places = Places(replace(BUSY, num_waiting=1))
    task = await places.ask("acme")
    await asyncio.sleep(0.12)
    assert not task.done()
    places.load = BUSY
    await asyncio.wait_for(task, 5)


@pytest.mark.anyio
async def test_a_free_place_goes_to_the_tenant_with_fewest() -> None:
    places = Places(ClientLoad(max_sequences=2, num_sequences=0, num_waiting=0, quiet_s=float("inf")))
    for _ in range(2):
        await places.pacer.take("acme", 1)
    waiting = [await places.ask("acme"), await places.ask("other")]
    places.pacer.give("acme", 1)
    await asyncio.wait_for(waiting[1], 5)
    assert not waiting[0].done()
    places.pacer.give("acme", 1)
    await asyncio.wait_for(waiting[0], 5)


@pytest.mark.anyio
async def test_a_line_that_needs_more_than_all_places_runs_alone() -> None:
    places = Places(BUSY)
    await places.pacer.take("acme", 1)
    large = await places.ask("acme", 9)
    await asyncio.sleep(0.12)
    assert not large.done()
    places.pacer.give("acme", 1)
    await asyncio.wait_for(large, 5)


@pytest.mark.anyio
async def test_one_that_gives_up_holds_nothing() -> None:
    places = Places(replace(CALM, num_waiting=1))
    waiting = await places.ask("acme")
    places.load = CALM
    await places.pacer.take("acme", 1)
    assert places.pacer.num_running == 2
    waiting.cancel()  # it has a place, and does not know it yet
    await asyncio.gather(waiting, return_exceptions=True)
    assert places.pacer.num_running == 1
