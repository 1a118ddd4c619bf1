"""Calls to a judge, with a rate limit, a daily token budget, timeouts and retries."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from config.monitor import JudgeConfig
from quality.judge import JudgeReplyError, JudgeTask
from quality.samples.store import QualityStore
from serve.background import Backoff
from serve.clock import steady_time
from serve.monitor.judge.asking import Judge, JudgeCallError, JudgeReply, most_tokens
from serve.monitor.protocol import MonitorMetrics

_RETRY_TEMPERATURE = 0.7
# A judge that wants us to wait longer gets no more tries of the same task.
_LONGEST_RETRY_AFTER_S = 300.0

ReadT = TypeVar("ReadT")


class OverBudgetError(RuntimeError):
    """The tokens of this day do not suffice."""


class JudgeCalls:
    """Asks a judge within what the configuration allows; the day's tokens are counted in the store.

    Args:
        clock: Seconds since the epoch, for the day and the pace.
        jitter: 0 to 1; stretches waits by up to half, so that several servers do not come back at once.
    """

    def __init__(
        self,
        judge: Judge,
        store: QualityStore,
        metrics: MonitorMetrics,
        config: JudgeConfig,
        *,
        clock: Callable[[], float] = steady_time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float],
    ) -> None:
        self.judge = judge
        self._store = store
        self._metrics = metrics
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._next_s = 0.0

    async def call(self, task: JudgeTask, read: Callable[[str], ReadT]) -> ReadT:
        """Ask, and read the reply; try again where that may help.

        Raises:
            OverBudgetError: Today's tokens do not suffice for another try.
            JudgeCallError: The last try failed, or none can succeed.
        """
        backoff = Backoff()
        while True:
            try:
                # Greedily once; the same question would only give the same broken reply again.
                reply = await self._ask(task, _RETRY_TEMPERATURE if backoff.num_failures else 0.0)
                answer = read(reply.text)
            except (JudgeReplyError, JudgeCallError) as error:
                failure = error if isinstance(error, JudgeCallError) else JudgeCallError(str(error), "invalid")
                self._metrics.judge.asked(failure.outcome)
                wait_s = self._wait_s(backoff.next_s(), failure)
                if backoff.num_failures == self._config.max_attempts or wait_s is None:
                    raise failure from error
                await self._sleep(wait_s)
            else:
                self._metrics.judge.asked("ok")
                return answer

    async def _ask(self, task: JudgeTask, temperature: float) -> JudgeReply:
        """One try. What it may cost is booked first: a reply that comes too late is paid for, too."""
        booked = most_tokens(task)
        await asyncio.to_thread(self._book, booked)
        await self._take_pace()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                reply = await self.judge.ask(task, temperature)
        except TimeoutError as error:
            raise JudgeCallError(f"did not answer in {self._config.timeout_s:g} s", "timeout") from error
        except JudgeCallError as error:
            if error.is_free:
                await asyncio.to_thread(self._spend, -booked)
            raise
        await asyncio.to_thread(self._spend, reply.num_tokens - booked)
        return reply

    def _book(self, num_tokens: int) -> None:
        spent = self._store.judge_tokens(self.judge.name, self._day())
        if spent + num_tokens > self._config.tokens_per_day:
            raise OverBudgetError(
                f"The judge {self.judge.name!r} has used {spent} of {self._config.tokens_per_day} tokens of "
                f"{self._day()} (UTC); it resumes tomorrow, or raise `quality.judge.tokens_per_day`."
            )
        self._spend(num_tokens)

    def _spend(self, num_tokens: int) -> None:
        self._store.add_judge_tokens(self.judge.name, self._day(), num_tokens)

    def _day(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()

    async def _take_pace(self) -> None:
        """Requests leave evenly spaced."""
        now_s, interval_s = self._clock(), 60.0 / self._config.requests_per_minute
        wait_s = min(self._next_s - now_s, interval_s)  # more only where the clock went back
        self._next_s = now_s + max(0.0, wait_s) + interval_s
        if wait_s > 0:
            await self._sleep(wait_s)

    def _wait_s(self, backoff_s: float, failure: JudgeCallError) -> float | None:
        """Until the next try; None where there is no point in one."""
        asked_s = failure.retry_after_s or 0.0
        if not failure.is_worth_a_retry or asked_s > _LONGEST_RETRY_AFTER_S:
            return None
        return max(asked_s, backoff_s) * (1.0 + self._jitter() / 2.0)
