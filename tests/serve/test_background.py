"""Loops beside the server: none ends unnoticed, and none floods the log."""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from adapters.store.store import AdapterStore
from serve.app import create_app
from serve.background import Failures, keep_running, task_of, watch_thread
from serve.monitor.monitor import Monitor
from serve.observe.metrics import ServeMetrics
from tests.pauses import Pauses
from tests.serving import make_serving

pytestmark = pytest.mark.anyio


class BrokenLoop:
    """Ends as it was told to, again and again."""

    def __init__(self, end: Callable[[], Awaitable[None]]) -> None:
        self.starts = 0
        self._end = end

    async def run(self) -> None:
        self.starts += 1
        await self._end()


async def fails() -> None:
    raise OSError(24, "Too many open files")


async def returns() -> None:
    pass


async def awaits_what_is_cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


class Panic(BaseException):
    """As libraries written in Rust raise it."""


async def panics() -> None:
    raise Panic


@pytest.mark.parametrize("end", [fails, returns, awaits_what_is_cancelled, panics])
async def test_a_loop_that_ends_is_counted_logged_and_started_again(
    end: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    metrics, loop, pauses = ServeMetrics(CollectorRegistry(), "base"), BrokenLoop(end), Pauses(9)
    running = asyncio.create_task(keep_running(loop.run, metrics.failures, sleep=pauses.sleep))
    await pauses.reached.wait()
    assert loop.starts == 9
    assert pauses.seconds == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    labels = {"task": "broken_loop"}
    assert metrics.registry.get_sample_value("lorikeet_background_failures_total", labels) == 9
    assert caplog.records[0].exc_info is not None
    running.cancel()


async def test_a_loop_that_ran_for_long_is_started_again_soon() -> None:
    now_s = [0.0]

    async def works_for_an_hour() -> None:
        now_s[0] += 3600.0

    pauses = Pauses(3)
    running = asyncio.create_task(
        keep_running(works_for_an_hour, Failures(), sleep=pauses.sleep, clock=lambda: now_s[0])
    )
    await pauses.reached.wait()
    assert pauses.seconds == [1, 1, 1]
    running.cancel()


async def test_a_loop_that_is_told_to_end_ends() -> None:
    loop = BrokenLoop(asyncio.Event().wait)  # type: ignore[arg-type] # its result is not looked at
    running = asyncio.create_task(keep_running(loop.run, Failures()))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert loop.starts == 1


@pytest.mark.slow
async def test_the_application_keeps_its_loops_running(store: AdapterStore, base_folder: Path) -> None:
    serving, loop = make_serving(store, base_folder), BrokenLoop(fails)
    parts = dataclasses.replace(serving.parts, background=(loop.run,))
    async with create_app(parts).router.lifespan_context(serving.app):
        async with asyncio.timeout(10):
            while loop.starts < 2:
                await asyncio.sleep(0.01)
        async with serving.client() as client:
            metrics = (await client.get("/metrics")).text
    assert 'lorikeet_background_failures_total{task="broken_loop"} 2.0' in metrics


@pytest.mark.slow
async def test_the_monitor_keeps_its_loops_running(store: AdapterStore, base_folder: Path) -> None:
    serving, loop = make_serving(store, base_folder), BrokenLoop(fails)
    monitor = Monitor(serving.engine, serving.metrics.quality, 0.0, serving.metrics.failures)
    monitor.loops.append(loop.run)
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(10):
        while loop.starts < 2:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_a_flood_of_failures_is_counted_and_mostly_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    now_s, counted = [0.0], []
    failures = Failures(lambda task, num: counted.append((task, num)), clock=lambda: now_s[0])
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            failures.note("judge", ValueError("no"))
        failures.note("monitor", ValueError("another task's"))
        now_s[0] = 61.0
        failures.note("judge", ValueError("no"))
    assert len(counted) == 1002
    assert len(caplog.records) == 12
    assert "990 similar lines suppressed" in caplog.records[-1].message
    assert [record.exc_info is not None for record in caplog.records].count(True) == 3


async def test_a_thread_that_dies_ends_its_loop() -> None:
    def work() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        await watch_thread(work, lambda: None, "worker")


def test_a_task_has_the_name_of_its_class() -> None:
    assert task_of(BrokenLoop(returns).run) == "broken_loop"
    assert task_of(returns) == "returns"
