"""Ray Serve's router class around `Affinity`, with replicas that only answer what the router asks of them."""

import asyncio
from types import SimpleNamespace

import pytest

from serve.cluster.ingress import model_of
from serve.cluster.router import AffinityRouter

pytestmark = pytest.mark.anyio


def replica(name, *models):
    stats = {"models": list(models), "num_adapters": len(models), "max_adapters": 4, "max_requests": 1}
    return SimpleNamespace(replica_id=name, routing_stats=stats)


def request(model, number=1):
    metadata = SimpleNamespace(multiplexed_model_id=model, session_id="", internal_request_id=f"r{number}")
    return SimpleNamespace(metadata=metadata, routing_context=SimpleNamespace(should_backoff=False))


@pytest.fixture
def router():
    made = AffinityRouter.__new__(AffinityRouter)  # what Ray's own constructor makes is not asked
    made.initialize_state(base_model="base", routing="affinity")
    return made


async def test_the_router_chooses_the_replica_that_holds_the_model(router):
    one, two = replica("one"), replica("two", "medical")
    asked = request("medical")
    assert await router.choose_replicas([one, two], asked) == [[two]]
    assert asked.routing_context.should_backoff


async def test_the_router_counts_requests_until_they_end(router):
    one, two = replica("one"), replica("two", "medical")
    router.on_request_routed(request("medical", 1), "two", None)
    assert await router.choose_replicas([one, two], request("medical", 2)) == [[one]]


async def test_a_router_without_replicas_chooses_none(router):
    assert await router.choose_replicas([], request("medical")) == []


async def test_a_replica_that_has_reported_nothing_may_be_chosen(router):
    silent = SimpleNamespace(replica_id="one", routing_stats={})
    assert await router.choose_replicas([silent], request("")) == [[silent]]
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "medical@3"}', "medical@3"),
        (b'{"model": 3}', ""),
        (b"[]", ""),
        (b"{", ""),
        (b"", ""),
        (b"\xff\xfe", ""),
    ],
)
def test_the_model_is_read_from_the_body(body, model):
    assert model_of(body) == model
