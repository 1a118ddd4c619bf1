"""Limits of keys over several replicas, with replicas in one process."""

import asyncio
import logging

import pytest

from serve.access.keys import ANONYMOUS
from serve.cluster.key_limits import KeyLimits, SharedLimits
from serve.errors import RateLimitedError
from tests.clock import FakeClock

pytestmark = pytest.mark.anyio

KEY = ANONYMOUS.model_copy(update={"id": "1" * 8, "tenant": "acme", "max_concurrency": 1})


class Unreachable:
    """Shared limits that nobody reaches."""

    async def take(self, owner, lease_id, key):
        raise ConnectionError("gone")

    async def give(self, owner, lease_id):
        raise ConnectionError("gone")

    async def debit(self, key, num_tokens):
        raise ConnectionError("gone")

    async def seen(self, owner):
        raise ConnectionError("gone")


class Slow(KeyLimits):
    """Grants once it is told to."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()

    async def take(self, owner, lease_id, key):
        await self.go.wait()
        return await super().take(owner, lease_id, key)


async def told():
    """What is sent without waiting has arrived."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_two_replicas_share_a_keys_limit():
    shared = KeyLimits()
    one, two = SharedLimits(shared, "one"), SharedLimits(shared, "two")
    lease = await one.take(KEY)
    with pytest.raises(RateLimitedError, match="1 concurrent") as refused:
        await two.take(KEY)
    assert refused.value.retry_after_s == 1.0
    lease.release()
    lease.release()
    await told()
    with await two.take(KEY):
        pass


async def test_tokens_of_one_replica_count_on_the_other():
    shared, key = KeyLimits(FakeClock()), KEY.model_copy(update={"max_concurrency": None, "tokens_per_minute": 100})
    lease = await SharedLimits(shared, "one").take(key)
    lease.release()
    lease.debit(150)
    await told()
    with pytest.raises(RateLimitedError, match="100 tokens per minute"):
        await SharedLimits(shared, "two").take(key)


async def test_a_replica_goes_on_alone_and_says_so_once(caplog):
    clock = FakeClock()
    limits = SharedLimits(Unreachable(), "one", clock)
    caplog.set_level(logging.WARNING)
    lease = await limits.take(KEY)
    with pytest.raises(RateLimitedError, match="1 concurrent"):
        await limits.take(KEY)
    lease.release()
    clock.now_s += 6
    (await limits.take(KEY)).release()
    assert len(caplog.records) == 1
    assert "cannot be reached" in caplog.text


async def test_a_key_without_limits_asks_nobody(caplog):
    (await SharedLimits(Unreachable(), "one").take(ANONYMOUS)).release()
    assert caplog.records == []


async def test_what_a_dead_replica_held_is_given_back():
    clock = FakeClock()
    shared = KeyLimits(clock)
    await SharedLimits(shared, "dead").take(KEY)
    clock.now_s += 31
    with await SharedLimits(shared, "alive").take(KEY):
        pass


async def test_a_place_granted_to_a_client_that_left_is_given_back():
    shared = Slow()
    asking = asyncio.create_task(SharedLimits(shared, "one").take(KEY))
    await told()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    shared.go.set()
    await told()
    with await SharedLimits(shared, "two").take(KEY):
        pass
