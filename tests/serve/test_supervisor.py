"""An engine that dies is started again, with what it held; one that has never started is tried three times."""

import asyncio
import dataclasses
from typing import NoReturn

import pytest

from adapters.reference import Target
from serve.app import create_app
from serve.errors import EngineStartError
from serve.residency.watch import StoreWatcher
from serve.supervisor import Supervisor
from tests.eventually import eventually
from tests.pauses import Pauses
from tests.serving import Serving

pytestmark = pytest.mark.anyio


def supervisor(serving: Serving, pauses: Pauses) -> Supervisor:
    watcher = StoreWatcher(serving.store, serving.residency, serving.metrics.adapter_retired)
    return Supervisor(serving.engine, serving.residency, watcher, serving.metrics, sleep=pauses.sleep)


async def test_a_dead_engine_is_started_again_and_its_adapters_come_back(serving: Serving) -> None:
    serving.publish("medical")
    pauses = Pauses(2)
    running = asyncio.create_task(supervisor(serving, pauses).run())
    await asyncio.sleep(0.01)
    await serving.residency.load(Target("medical", 1))
    serving.engine.died.set()
    await eventually(lambda: serving.engine.starts == 2 and serving.residency.residents)
    assert serving.engine.is_ready
    assert serving.engine.resident == {"medical@1"}
    assert serving.metrics.registry.get_sample_value("lorikeet_engine_restarts_total") == 1
    assert serving.metrics.registry.get_sample_value("lorikeet_ready") == 1
    running.cancel()


async def test_an_engine_that_does_not_come_back_is_tried_again_ever_later(serving: Serving) -> None:
    pauses = Pauses(9)
    running = asyncio.create_task(supervisor(serving, pauses).run())
    await asyncio.sleep(0.01)
    serving.engine.start_errors = [RuntimeError("no memory") for _ in range(8)]
    serving.engine.died.set()
    async with asyncio.timeout(10):
        await pauses.reached.wait()
    assert pauses.seconds == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert not serving.engine.is_ready
    running.cancel()


async def test_an_engine_that_has_never_run_is_tried_three_times(serving: Serving) -> None:
    serving.engine.is_ready = False
    serving.engine.start_errors = [RuntimeError("no memory") for _ in range(9)]
    pauses = Pauses(9)
    with pytest.raises(EngineStartError, match="failed to start 3 times"):
        await supervisor(serving, pauses).run()
    assert pauses.seconds == [1, 2]


async def test_an_engine_that_says_it_cannot_start_is_tried_once(serving: Serving) -> None:
    serving.engine.start_errors = [EngineStartError("this vLLM is another one")]
    pauses = Pauses(9)
    with pytest.raises(EngineStartError, match="this vLLM is another one"):
        await supervisor(serving, pauses).run()
    assert (serving.engine.starts, pauses.seconds) == (1, [])


async def test_an_engine_that_started_at_the_third_time_is_kept(serving: Serving) -> None:
    serving.engine.is_ready = False
    serving.engine.start_errors = [RuntimeError("no memory") for _ in range(2)]
    pauses = Pauses(9)
    running = asyncio.create_task(supervisor(serving, pauses).run())
    await eventually(lambda: serving.engine.is_ready)
    await asyncio.sleep(0.05)  # time enough to end it, or to start another
    assert serving.engine.is_ready
    assert (serving.engine.starts, pauses.seconds, running.done()) == (3, [1, 2], False)
    running.cancel()


async def test_the_application_says_that_there_will_be_no_engine(serving: Serving) -> None:
    serving.engine.start_errors = [RuntimeError("no memory") for _ in range(3)]
    parts = dataclasses.replace(serving.parts, supervisor=supervisor(serving, Pauses(9)))
    said: asyncio.Queue[BaseException] = asyncio.Queue()
    app = create_app(parts, said.put_nowait)
    async with app.router.lifespan_context(app):
        async with asyncio.timeout(10):
            assert isinstance(await said.get(), EngineStartError)


async def test_what_the_store_says_is_pinned_is_pinned_after_a_start(serving: Serving) -> None:
    serving.publish("medical")
    serving.store.pin(Target("medical", 1))
    running = asyncio.create_task(supervisor(serving, Pauses(1)).run())
    await eventually(lambda: serving.engine.pinned)
    assert serving.engine.pinned == {"medical@1"}
    running.cancel()


class EngineDeadError(Exception):
    """Stands for vLLM's error of that name."""


async def dead(*_: object) -> NoReturn:
    raise EngineDeadError("EngineCore encountered an issue")


@pytest.mark.parametrize("part", ["logprobs", "load", "unload"])
async def test_an_engine_that_dies_again_while_adapters_come_back_is_started_again(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    for name in ("legal", "medical"):
        serving.publish(name)
    running = asyncio.create_task(supervisor(serving, Pauses(9)).run())
    await asyncio.sleep(0.01)
    for name in ("legal", "medical"):
        await serving.residency.load(Target(name, 1))
    serving.parts.residency._answer_checks._passed.clear()  # golden prompts are replayed at each load
    with monkeypatch.context() as dying:
        dying.setattr(serving.engine, "logprobs", dead)
        dying.setattr(serving.engine, part, dead)
        serving.engine.died.set()
        await eventually(lambda: serving.engine.starts == 2)
        await asyncio.sleep(0.05)
    serving.engine.died.set()
    await eventually(lambda: serving.engine.resident == {"legal@1", "medical@1"})
    assert not running.done()
    running.cancel()


async def test_an_engine_that_hangs_while_adapters_come_back_is_started_again(serving: Serving) -> None:
    serving.publish("medical")
    running = asyncio.create_task(supervisor(serving, Pauses(9)).run())
    await asyncio.sleep(0.01)
    await serving.residency.load(Target("medical", 1))
    serving.parts.residency._answer_checks._passed.clear()

    async def hangs(*_: object) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    serving.engine.logprobs = hangs  # type: ignore[method-assign, assignment]  # the fake is made to hang
    serving.engine.died.set()
    await eventually(lambda: serving.engine.starts >= 2)
    serving.engine.died.set()
    await eventually(lambda: serving.engine.starts >= 3)
    running.cancel()


async def test_an_engine_that_cannot_be_ended_is_started_again(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    running = asyncio.create_task(supervisor(serving, Pauses(9)).run())
    await asyncio.sleep(0.01)
    serving.engine.stop = dead  # type: ignore[method-assign]  # the fake is made to fail
    serving.engine.died.set()
    await eventually(lambda: serving.engine.starts == 2)
    labels = {"task": "supervisor"}
    assert serving.metrics.registry.get_sample_value("lorikeet_background_failures_total", labels) == 1
    assert "Stopping the engine failed" in caplog.text
    running.cancel()
