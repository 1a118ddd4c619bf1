"""The quality monitor, which an operator can pause: observers of traffic and background loops."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from serve.background import Failures, Loop, keep_running
from serve.engine.protocol import Engine
from serve.monitor.feedback import GivenFeedback, TakenFeedback
from serve.monitor.protocol import QualityMeter
from serve.monitor.trial.state import TrialState
from serve.records import AnsweredRequest, GenerationRecord, Observers, Source

logger = logging.getLogger(__name__)


class Monitor:
    """Tells `observers` and keeps `loops` running, but for the times between `pause` and `resume`.

    Paused it costs nothing: the engine draws no log-probabilities, nobody is told, nothing is asked, no loop runs.

    Args:
        logprob_rate: What the engine's is while the monitor works.
    """

    def __init__(
        self, engine: Engine, metrics: QualityMeter, logprob_rate: float, failures: Failures | None = None
    ) -> None:
        self.observers = Observers(failures)
        self.loops: list[Loop] = []
        self.trials: Callable[[], Sequence[TrialState]] = tuple
        """Returns the trials of canaries; empty without a controller."""
        self.give_feedback: Callable[[GivenFeedback], Future[TakenFeedback]] | None = None
        """Stores what users say of answers; None where no text is kept."""
        self.is_paused = False
        self._engine = engine
        self._metrics = metrics
        self._failures = failures or Failures()
        self._logprob_rate = logprob_rate
        self._is_begun = False
        self._tasks: list[asyncio.Task[None]] = []
        self._changing = asyncio.Lock()
        engine.logprob_rate = logprob_rate

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        if not self.is_paused:
            self.observers.generation_started(lora_name, source)

    def generation_finished(self, record: GenerationRecord) -> None:
        if not self.is_paused:
            self.observers.generation_finished(record)

    def request_finished(self, record: AnsweredRequest) -> None:
        if not self.is_paused:
            self.observers.request_finished(record)

    async def run(self) -> None:
        """Work until cancelled."""
        self._is_begun = True
        try:
            self._start_loops()
            await asyncio.Event().wait()
        finally:
            self._is_begun = False
            await self._stop_loops()

    async def pause(self) -> None:
        """Stop all loops and observers; collected data is kept."""
        async with self._changing:
            if not self.is_paused:
                logger.warning("The quality monitor is paused: answers are not measured, canaries are not judged")
            self._become(is_paused=True)
            await self._stop_loops()

    async def resume(self) -> None:
        """Resume with the data collected before the pause."""
        async with self._changing:
            if self.is_paused:
                logger.warning("The quality monitor is running again")
            self._become(is_paused=False)
            self._start_loops()

    def _become(self, *, is_paused: bool) -> None:
        self.is_paused = is_paused
        self._engine.logprob_rate = 0.0 if is_paused else self._logprob_rate
        self._metrics.monitor_paused(is_paused=is_paused)

    def _start_loops(self) -> None:
        if self._is_begun and not self.is_paused and not self._tasks:
            self._tasks = [asyncio.create_task(keep_running(loop, self._failures)) for loop in self.loops]

    async def _stop_loops(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
