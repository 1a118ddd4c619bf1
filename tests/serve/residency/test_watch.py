"""What another process does to the store takes effect here, without a restart."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from adapters.reference import Target
from adapters.store.store import AdapterStore
from serve.residency.watch import StoreWatcher
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


@pytest.mark.slow
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


@contextmanager
def watching(serving: Serving) -> Iterator[asyncio.Task[None]]:
    failures = serving.metrics.failures
    running = asyncio.create_task(
        StoreWatcher(serving.store, serving.residency, serving.metrics.adapter_retired, failures).run()
    )
    try:
        yield running
    finally:
        running.cancel()


@pytest.mark.slow
async def test_an_error_that_nobody_expects_ends_nothing_and_is_tried_again(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: Target) -> None:
        raise OSError(24, "Too many open files")

    serving.publish("medical")
    await serving.residency.load(Target("medical", 1))
    labels = {"task": "store_watcher"}
    with watching(serving) as running:
        await asyncio.sleep(0.3)
        with monkeypatch.context() as broken:
            broken.setattr(serving.residency, "load", fails)
            serving.publish("medical")
            await until(
                lambda: bool(serving.metrics.registry.get_sample_value("lorikeet_background_failures_total", labels))
            )
        await until(lambda: "medical@2" in serving.engine.resident)
        assert not running.done()


@pytest.mark.slow
async def test_what_changed_while_nobody_watched_is_followed_after_a_new_start(serving: Serving) -> None:
    serving.publish("medical")
    await serving.residency.load(Target("medical", 1))
    watcher_ = watcher(serving)
    first = asyncio.create_task(watcher_.run())
    await asyncio.sleep(0.3)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    serving.publish("medical")
    again = asyncio.create_task(watcher_.run())
    await until(lambda: "medical@2" in serving.engine.resident)
    again.cancel()


@pytest.mark.slow
async def test_the_quarantine_of_another_server_is_shown_and_so_is_its_end(serving: Serving) -> None:
    serving.publish("medical")
    labels = {"adapter": "medical", "version": "1"}
    gauge = partial(serving.metrics.registry.get_sample_value, "lorikeet_adapter_quarantined", labels)
    with watching(serving):
        await asyncio.sleep(0.3)
        serving.store.quarantine(Target("medical", 1), "it computed NaN")
        await until(lambda: gauge() == 1)
        serving.store.lift_quarantine(Target("medical", 1))
        await until(lambda: gauge() == 0)


@pytest.mark.slow
async def test_a_store_that_is_replaced_is_followed(serving: Serving, tmp_path: Path) -> None:
    serving.publish("medical")
    await serving.residency.load(Target("medical", 1))
    with watching(serving):
        await asyncio.sleep(0.3)
        shutil.copytree(serving.store.root, tmp_path / "backup")
        shutil.move(serving.store.root, tmp_path / "away")
        shutil.move(tmp_path / "backup", serving.store.root)
        await asyncio.sleep(1.5)
        serving.publish("medical")
        await until(lambda: "medical@2" in serving.engine.resident)
