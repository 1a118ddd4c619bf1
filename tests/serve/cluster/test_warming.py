"""What a new replica loads before it takes requests."""

import asyncio

import pytest

from adapters.reference import Target
from serve.cluster.warming import warm

pytestmark = pytest.mark.anyio


class Others:
    """Replicas that run, and what was loaded of theirs."""

    def __init__(self, *demands, broken=()):
        self.demands, self.broken, self.loaded = demands, broken, []

    async def ask(self):
        return self.demands

    async def load(self, target):
        if str(target) in self.broken:
            raise RuntimeError("refused")
        self.loaded.append(target)


async def test_a_new_replica_loads_its_share_of_what_others_answer():
    others = Others({"a@1": 7, "b@2": 6, "c@1": 1})
    assert await warm(others.ask, others.load, 8) == ("a@1",)
    assert others.loaded == [Target("a", 1)]


async def test_demand_of_several_replicas_adds_up():
    others = Others({"a@1": 1, "b@1": 4}, {"a@1": 5})
    assert await warm(others.ask, others.load, 1) == ("a@1",)


async def test_the_first_replica_loads_nothing():
    others = Others()
    assert await warm(others.ask, others.load, 8) == ()


async def test_a_version_that_cannot_be_loaded_keeps_no_replica_from_starting():
    others = Others({"a@1": 9, "b@1": 9}, broken=("a@1",))
    assert await warm(others.ask, others.load, 8) == ()
    others = Others({"hot@1": 90, "cold@1": 5}, broken=("hot@1",))
    assert await warm(others.ask, others.load, 8) == ("cold@1",)


async def test_a_load_that_hangs_does_not_keep_it_from_starting():
    others = Others({"a@1": 9})

    async def hang(target):
        await asyncio.Event().wait()

    assert await warm(others.ask, hang, 8, max_s=0.01) == ()


async def test_replicas_that_cannot_be_asked_are_no_reason_to_wait():
    async def fail():
        raise ConnectionError("no answer")

    others = Others()
    assert await warm(fail, others.load, 8) == ()
