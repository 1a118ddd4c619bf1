"""Starts the engine, and starts it again when it dies: with growing pauses, and with the adapters it held.

One that has never run is tried three times: what keeps it from starting is then likely to be there tomorrow, too.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from itertools import count

from adapters.reference import Target
from serve.engine.protocol import Engine
from serve.errors import EngineStartError
from serve.metrics import ServeMetrics
from serve.residency import Residency
from serve.watch import StoreWatcher

logger = logging.getLogger(__name__)

_MOST_FIRST_STARTS = 3
_LONGEST_PAUSE_S = 60.0
_HEALTHY_AFTER_S = 60.0
"""An engine that lived so long died of something new: the pauses start from one second again."""


class Supervisor:
    """Keeps one engine running until it is cancelled."""

    def __init__(
        self,
        engine: Engine,
        residency: Residency,
        watcher: StoreWatcher,
        metrics: ServeMetrics,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._residency = residency
        self._watcher = watcher
        self._metrics = metrics
        self._sleep = sleep
        self._lost: tuple[Target, ...] = ()

    async def run(self) -> None:
        """Start, wait for the end, start again.

        Raises:
            EngineStartError: It did not start at all.
        """
        pause_s = 1.0
        has_run = False
        for number in count(1):
            start = time.monotonic()
            if await self._start():
                has_run = True
                await self._engine.wait_until_dead()
                if time.monotonic() - start > _HEALTHY_AFTER_S:
                    pause_s = 1.0
                logger.error("The engine died; it is started again in %.0f s.", pause_s)
                await self._clean_up()
            elif not has_run and number == _MOST_FIRST_STARTS:
                raise EngineStartError(f"The engine did not start, {number} times. The log says why.")
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def stop(self) -> None:
        self._metrics.engine_stopped()
        await self._engine.stop()

    async def _start(self) -> bool:
        start = time.perf_counter()
        self._lost = self._residency.reset() or self._lost
        try:
            await self._engine.start()
        except Exception:  # whatever a model, a driver or a full memory raises: boundary
            logger.exception("The engine did not start; /ready stays 503. The cause is above.")
            await self._engine.stop()
            return False
        seconds = time.perf_counter() - start
        self._metrics.engine_started(seconds)
        logger.info("Ready after %.1f s", seconds)
        await self._watcher.follow_all()
        await self._residency.restore(self._lost)
        return True

    async def _clean_up(self) -> None:
        self._metrics.engine_died()
        await self._engine.stop()
