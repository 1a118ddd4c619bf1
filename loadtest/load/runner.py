"""Runs a plan against a server: sends each request when it is due, whatever the server does, and records the outcome.

Time is counted from the start of the run. An open loop never waits for answers, so a stalled server gets the same load
and its stall is in the latency of every request that was due meanwhile. A closed loop sends when an answer has come.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from config.loadtest import ClosedArrival, LoadtestConfig
from loadtest.load.client import Attempt, Clock
from loadtest.load.records import GeneratorFigures, RequestRecord
from loadtest.load.workload import PlannedRequest
from loadtest.report.stats import percentile

# asyncio's timers wake up to a millisecond late; the last one is spent asking the clock.
_TIMER_SLACK_S = 0.001
_LAG_INTERVAL_S = 0.05
_MAX_LAG_S = 0.010
_MAX_CPU_SHARE = 0.85


@dataclass
class RunProgress:
    """What a run has done so far; the runner writes, the live view reads."""

    num_sent: int = 0
    records: list[RequestRecord] = field(default_factory=list)


@dataclass(frozen=True)
class RunOutcome:
    """A finished run. Records are in the order of their index."""

    records: tuple[RequestRecord, ...] = field(repr=False)
    duration_s: float
    generator: GeneratorFigures
    was_stopped: bool


class Runner:
    """One run. Setting `stop` ends it early; what is open then is recorded as unfinished."""

    def __init__(self, config: LoadtestConfig, client: httpx.AsyncClient, clock: Clock) -> None:
        self._config = config
        self._client = client
        self._clock = clock
        self._url = f"{config.url.rstrip('/')}/chat/completions"
        self._open: set[asyncio.Task[None]] = set()
        self._loop_lags_s: list[float] = []
        self.progress = RunProgress()
        self.stop = asyncio.Event()

    async def run(self, plan: Iterator[PlannedRequest]) -> RunOutcome:
        """Send the plan, then wait for open requests, `drain_timeout_s` at most."""
        cpu_start_s, start_s = time.thread_time(), self._clock()
        lag_timer = asyncio.create_task(self._measure_loop_lag())
        try:
            await self._unless_stopped(self._send(plan))
            await self._unless_stopped(self._drain())
        finally:
            lag_timer.cancel()
            await self._abandon_open()
        duration_s = self._clock() - start_s
        records = tuple(sorted(self.progress.records, key=lambda record: record.index))
        # In a closed loop nothing is due at a time of its own, so only the timer can be late.
        is_open = not isinstance(self._config.arrival, ClosedArrival)
        lags_s = [record.lag_s for record in records if is_open] + self._loop_lags_s
        cpu_share = (time.thread_time() - cpu_start_s) / duration_s
        return RunOutcome(records, duration_s, _figures(lags_s, cpu_share), self.stop.is_set())

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; give it up when `stop` is set."""
        working, stopping = asyncio.create_task(work), asyncio.create_task(self.stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
            return
        working.result()

    async def _send(self, plan: Iterator[PlannedRequest]) -> None:
        if isinstance(self._config.arrival, ClosedArrival):
            await self._send_closed(plan, self._config.arrival.concurrency)
            return
        for planned in plan:
            await self._until(planned.intended_s)
            self._start(planned)

    async def _send_closed(self, plan: Iterator[PlannedRequest], concurrency: int) -> None:
        slots = asyncio.Semaphore(concurrency)
        for planned in plan:
            await slots.acquire()
            if self._clock() >= self._config.duration_s:
                return
            self._start(replace(planned, intended_s=self._clock()), slots.release)

    async def _until(self, due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - self._clock() - _TIMER_SLACK_S))
        while self._clock() < due_s:
            await asyncio.sleep(0)

    def _start(self, planned: PlannedRequest, on_end: Callable[[], None] = lambda: None) -> None:
        task = asyncio.create_task(self._attempt(planned))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        task.add_done_callback(lambda _: on_end())
        self.progress.num_sent += 1

    async def _attempt(self, planned: PlannedRequest) -> None:
        attempt = Attempt(planned, self._clock)
        try:
            record = await attempt.run(self._client, self._url, self._config.request_timeout_s)
        except asyncio.CancelledError:
            record = attempt.record("unfinished", "The run ended before the answer did.")
        self.progress.records.append(record)

    async def _drain(self) -> None:
        if self._open:
            await asyncio.wait(self._open, timeout=self._config.drain_timeout_s)

    async def _abandon_open(self) -> None:
        # A task that never ran cannot record itself when it is cancelled.
        await asyncio.sleep(0)
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open)

    async def _measure_loop_lag(self) -> None:
        """How late the event loop itself is: as late are the times of chunks."""
        due_s = self._clock()
        while True:
            due_s += _LAG_INTERVAL_S
            await asyncio.sleep(due_s - self._clock())
            self._loop_lags_s.append(max(0.0, self._clock() - due_s - _TIMER_SLACK_S))


def _figures(lags_s: list[float], cpu_share: float) -> GeneratorFigures:
    lag_p99_s = percentile(lags_s, 99) if lags_s else 0.0
    return GeneratorFigures(
        lag_p50_s=percentile(lags_s, 50) if lags_s else 0.0,
        lag_p99_s=lag_p99_s,
        cpu_share=cpu_share,
        is_bottleneck=lag_p99_s > _MAX_LAG_S or cpu_share > _MAX_CPU_SHARE,
    )
