"""The monitor as one thing: paused it sees nothing, asks nothing and runs nothing, and then goes on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from adapters.store.store import AdapterStore
from config.home import Home
from quality.samples.store import QualityStore
from serve.monitor.monitor import Monitor
from serve.observe.metrics import ServeMetrics
from serve.records import AnsweredRequest, RequestContext, Source
from tests.fake_engine import FakeEngine
from tests.generations import generation
from tests.serve.monitor.test_assemble import make_watched
from tests.serving import BASE_NAME, make_serving

pytestmark = pytest.mark.anyio


class Watcher:
    """An observer and a loop, which remember."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.num_running = 0
        self.num_begun = 0

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        self.seen.append("started")

    def generation_finished(self, record: object) -> None:
        self.seen.append("finished")

    def request_finished(self, record: object) -> None:
        self.seen.append("request")

    async def run(self) -> None:
        self.num_running += 1
        self.num_begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # as a thread that writes what it has
            self.num_running -= 1


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def metrics() -> ServeMetrics:
    return ServeMetrics(CollectorRegistry(), BASE_NAME)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def monitor(engine: FakeEngine, metrics: ServeMetrics, watcher: Watcher) -> Monitor:
    monitor = Monitor(engine, metrics.quality, 0.5)
    monitor.observers.of_generations.append(watcher)
    monitor.observers.of_requests.append(watcher)
    monitor.loops.append(watcher.run)
    return monitor


@asynccontextmanager
async def at_work(run: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(run())
    await asyncio.sleep(0.001)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def tell(monitor: Monitor) -> None:
    monitor.generation_started("medical@1", "client")
    monitor.generation_finished(generation("medical@1"))
    context = RequestContext("acme", "r1")
    monitor.request_finished(AnsweredRequest(context, "completions", "medical@1", "ok", 200, None, 1.0))


async def test_what_it_watches_with_is_told_but_for_pauses(monitor: Monitor, watcher: Watcher) -> None:
    tell(monitor)
    assert watcher.seen == ["started", "finished", "request"]
    await monitor.pause()
    tell(monitor)
    assert len(watcher.seen) == 3
    await monitor.resume()
    tell(monitor)
    assert len(watcher.seen) == 6


async def test_the_engine_draws_log_probabilities_but_for_pauses(monitor: Monitor, engine: FakeEngine) -> None:
    rates = [engine.logprob_rate]
    await monitor.pause()
    rates.append(engine.logprob_rate)
    await monitor.resume()
    assert [*rates, engine.logprob_rate] == [0.5, 0.0, 0.5]


async def test_a_pause_is_over_with_the_loops_and_a_resumption_begins_them(monitor: Monitor, watcher: Watcher) -> None:
    async with at_work(monitor.run):
        assert watcher.num_running == 1
        await monitor.pause()
        assert watcher.num_running == 0
        await monitor.resume()
        await asyncio.sleep(0)
        assert watcher.num_running == 1
    assert (watcher.num_running, watcher.num_begun) == (0, 2)


async def test_to_pause_or_resume_twice_is_to_do_it_once(monitor: Monitor, watcher: Watcher) -> None:
    async with at_work(monitor.run):
        await asyncio.gather(monitor.pause(), monitor.pause())
        await asyncio.gather(monitor.resume(), monitor.resume())
        await asyncio.sleep(0)
        assert watcher.num_running == 1


async def test_what_was_paused_before_the_server_began_begins_with_the_resumption(
    monitor: Monitor, watcher: Watcher
) -> None:
    await monitor.pause()
    async with at_work(monitor.run):
        assert watcher.num_begun == 0
        await monitor.resume()
        await asyncio.sleep(0)
        assert watcher.num_running == 1


async def test_a_server_that_has_ended_begins_no_loop_anew(monitor: Monitor, watcher: Watcher) -> None:
    async with at_work(monitor.run):
        await monitor.pause()
    await monitor.resume()
    await asyncio.sleep(0)
    assert watcher.num_begun == 1


async def test_a_pause_is_a_metric(monitor: Monitor, metrics: ServeMetrics) -> None:
    def paused() -> float | None:
        return metrics.registry.get_sample_value("lorikeet_quality_paused")

    assert paused() == 0
    await monitor.pause()
    assert paused() == 1
    await monitor.resume()
    assert paused() == 0


async def test_an_operator_pauses_and_resumes_and_answers_between_are_no_samples(
    store: AdapterStore, base_folder: Path, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    serving, parts = make_watched(store, base_folder, home)
    assert parts.monitor is not None
    states = []
    async with at_work(parts.monitor.run), serving.client() as client:
        states.append((await client.get("/admin/quality")).json())
        for action in ("pause", "resume"):
            body = {"model": BASE_NAME, "messages": [{"role": "user", "content": f"Before {action}"}]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            states.append((await client.post(f"/admin/quality/{action}")).json())
    assert [state["monitor"] for state in states] == ["works", "paused", "works"]
    with QualityStore(home.quality) as kept:
        assert len(kept.samples()) == 1


async def test_a_monitor_that_is_off_cannot_be_paused(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder)
    async with serving.client() as client:
        assert (await client.get("/admin/quality")).json() == {"monitor": "off", "trials": []}
        response = await client.post("/admin/quality/pause")
    assert response.status_code == 409
    assert "`quality.enabled` is false" in response.json()["error"]["message"]
