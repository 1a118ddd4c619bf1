"""Open and closed loops, bounds, and the end of a run."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.loadtest import LoadtestConfig
from loadtest.load.client import open_client
from loadtest.load.runner import Runner, RunOutcome
from loadtest.load.workload import plan
from tests.loadtest.load.test_client import ANSWER, streamed

pytestmark = pytest.mark.anyio

Handler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


async def answer_at_once(_: httpx.Request) -> httpx.Response:
    return streamed(*ANSWER)


async def never_answer(_: httpx.Request) -> httpx.Response:
    await asyncio.sleep(60)
    raise AssertionError("the run should have ended long ago")


class CountingServer:
    """Answers after a while, and knows how many requests it had at a time."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self.num_open = 0
        self.most_open = 0

    async def answer(self, _: httpx.Request) -> httpx.Response:
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        await asyncio.sleep(self._delay_s)
        self.num_open -= 1
        return streamed(*ANSWER)


def configured(**fields: Any) -> LoadtestConfig:
    given = {"mix": {"models": ["a"]}, "arrival": {"kind": "constant", "rate": 200}, "drain_timeout_s": 0.1} | fields
    return LoadtestConfig.model_validate(given)


async def run(config: LoadtestConfig, answer: Handler, *, stop_after_s: float | None = None) -> RunOutcome:
    start_s = time.perf_counter()
    async with open_client(transport=httpx.MockTransport(answer)) as client:
        runner = Runner(config, client, lambda: time.perf_counter() - start_s)
        if stop_after_s is not None:
            asyncio.get_running_loop().call_later(stop_after_s, runner.stop.set)
        return await runner.run(plan(config, Path("nowhere")))


@pytest.mark.slow
async def test_every_planned_request_is_sent_once_and_recorded_in_order() -> None:
    outcome = await run(configured(num_requests=30), answer_at_once)
    assert [record.index for record in outcome.records] == list(range(30))
    assert all(record.is_ok for record in outcome.records)


@pytest.mark.slow
async def test_nothing_is_sent_before_it_is_due() -> None:
    outcome = await run(configured(num_requests=30), answer_at_once)
    assert [record.intended_s for record in outcome.records] == pytest.approx([0.005 * n for n in range(1, 31)])
    assert min(record.lag_s for record in outcome.records) >= 0


@pytest.mark.slow
async def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = CountingServer(delay_s=0.3)
    await run(configured(num_requests=20, drain_timeout_s=5), server.answer)
    assert server.most_open == 20


async def test_a_closed_loop_never_has_more_open_than_its_concurrency() -> None:
    server = CountingServer(delay_s=0.01)
    config = configured(arrival={"kind": "closed", "concurrency": 3}, num_requests=12, drain_timeout_s=5)
    outcome = await run(config, server.answer)
    assert (server.most_open, len(outcome.records)) == (3, 12)


@pytest.mark.slow
async def test_a_closed_loop_counts_latency_from_the_moment_it_may_send() -> None:
    config = configured(arrival={"kind": "closed", "concurrency": 1}, num_requests=3, drain_timeout_s=5)
    first, second, _ = (await run(config, CountingServer(delay_s=0.05).answer)).records
    assert second.intended_s >= first.ended_s
    assert second.e2e_s >= 0.05


async def test_a_closed_loop_ends_in_time() -> None:
    config = configured(arrival={"kind": "closed", "concurrency": 2}, duration_s=0.1)
    outcome = await run(config, CountingServer(delay_s=0.02).answer)
    assert 2 <= len(outcome.records) <= 12
    assert max(record.sent_s for record in outcome.records) < 0.1 + 0.05


@pytest.mark.slow
async def test_what_is_open_after_the_drain_is_recorded_as_unfinished() -> None:
    outcome = await run(configured(num_requests=3), never_answer)
    assert [record.error for record in outcome.records] == ["unfinished"] * 3
    assert outcome.records[0].error_message == "The run ended before the answer did."


async def test_requests_time_out_on_their_own() -> None:
    outcome = await run(configured(num_requests=3, request_timeout_s=0.02, drain_timeout_s=5), never_answer)
    assert [record.error for record in outcome.records] == ["timeout"] * 3


@pytest.mark.slow
async def test_a_run_that_is_stopped_keeps_what_was_measured() -> None:
    config = configured(arrival={"kind": "constant", "rate": 20})
    outcome = await run(config, answer_at_once, stop_after_s=0.2)
    assert outcome.was_stopped
    assert 1 <= len(outcome.records) < 10
    assert outcome.records[0].is_ok


@pytest.mark.slow
async def test_a_stop_while_draining_ends_the_run() -> None:
    outcome = await run(configured(num_requests=2, drain_timeout_s=50), never_answer, stop_after_s=0.1)
    assert [record.error for record in outcome.records] == ["unfinished"] * 2


@pytest.mark.slow
async def test_a_generator_that_cannot_keep_up_says_so() -> None:
    async def hog(_: httpx.Request) -> httpx.Response:
        time.sleep(0.03)
        return streamed(*ANSWER)

    outcome = await run(configured(num_requests=20, drain_timeout_s=5), hog)
    assert outcome.generator.is_bottleneck
    assert outcome.generator.lag_p99_s > 0.1
