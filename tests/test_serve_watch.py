"""What another process does to the store takes effect here, without a restart."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.reference import Target
from adapters.store import AdapterStore
from serve.watch import StoreWatcher
from tests.serving import Serving, make_serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path) -> Serving:
    return make_serving(store, base_folder, max_loras=3)


def watcher(serving: Serving) -> StoreWatcher:
    return StoreWatcher(serving.store, serving.residency, serving.metrics.adapter_retired)


async def until(is_true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_true():
            await asyncio.sleep(0.02)


async def test_a_promotion_is_prefetched_where_the_adapter_is_in_use(serving: Serving) -> None:
    serving.publish("medical")
    await serving.residency.load(Target("medical", 1))
    running = asyncio.create_task(watcher(serving).run())
    await asyncio.sleep(0.1)
    serving.publish("medical")
    await until(lambda: "medical@2" in serving.engine.resident)
    running.cancel()


async def test_an_adapter_that_nobody_uses_is_not_loaded(serving: Serving) -> None:
    serving.publish("medical")
    await watcher(serving).follow("medical")
    assert serving.engine.loads == []


async def test_pins_of_another_process_are_followed(serving: Serving) -> None:
    serving.publish("medical")
    serving.store.pin(Target("medical", 1))
    await watcher(serving).follow("medical")
    assert serving.engine.pinned == {"medical@1"}
    serving.store.unpin(Target("medical", 1))
    await watcher(serving).follow("medical")
    assert serving.engine.pinned == set()


async def test_the_series_of_a_removed_version_are_dropped(serving: Serving) -> None:
    serving.publish("medical")
    serving.publish("medical")
    labels = {"adapter": "medical", "version": "1"}
    await serving.residency.load(Target("medical", 1))
    await serving.residency.unload(Target("medical", 1))
    assert serving.metrics.registry.get_sample_value("lorikeet_adapter_loads_total", labels) == 1
    serving.store.remove(Target("medical", 1))
    await watcher(serving).follow("medical")
    assert serving.metrics.registry.get_sample_value("lorikeet_adapter_loads_total", labels) is None
    assert serving.metrics.registry.get_sample_value("lorikeet_adapter_unloads_total", labels) is None


async def test_what_cannot_be_followed_is_logged_and_ends_nothing(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        serving.publish(name)
        serving.store.pin(Target(name, 1))
        await watcher(serving).follow(name)
    assert serving.engine.pinned == {"a@1", "b@1"}
    assert "At most 2 adapters can be pinned" in caplog.text
