"""Start the engine, and restart it when it dies, with exponential backoff and the same adapters.

One that has never run is tried three times: what keeps it from starting is then likely to be there tomorrow, too.
Adapters come back beside the running engine: it may die meanwhile, or hang, and is started again all the same.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from itertools import count

from adapters.reference import Target
from serve.background import Backoff, is_told_to_end
from serve.engine.protocol import Engine
from serve.errors import EngineStartError
from serve.observe.metrics import ServeMetrics
from serve.residency.residency import Residency
from serve.residency.watch import StoreWatcher

logger = logging.getLogger(__name__)

_MAX_FIRST_STARTS = 3
_HEALTHY_AFTER_S = 60.0
"""After running this long, the backoff starts again from one second."""


class Supervisor:
    """Keep one engine running until cancelled."""

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
        self._lost: tuple[Target, ...] = ()  # what an engine that died held and no later one has yet

    async def run(self) -> None:
        """Start, wait for the end, start again.

        Raises:
            EngineStartError: It did not start at all.
        """
        backoff, has_run = Backoff(), False
        for number in count(1):
            start = time.monotonic()
            if await self._start():
                has_run = True
                await self._live()
                if time.monotonic() - start > _HEALTHY_AFTER_S:
                    backoff.reset()
                self._metrics.engine_died()
                await self._end()
            elif not has_run and number == _MAX_FIRST_STARTS:
                raise EngineStartError(f"The engine failed to start {number} times. See the log for the cause.")
            pause_s = backoff.next_s()
            logger.error("Restarting the engine in %.0f s.", pause_s)
            await self._sleep(pause_s)

    async def stop(self) -> None:
        self._metrics.engine_stopped()
        await self._engine.stop()

    async def _start(self) -> bool:
        start = time.perf_counter()
        self._lost = tuple(dict.fromkeys((*self._residency.reset(), *self._lost)))
        try:
            await self._engine.start()
        except EngineStartError:  # it says why, and that another start would end likewise
            await self._end()
            raise
        except Exception:  # whatever a model, a driver or a full memory raises: boundary
            logger.exception("The engine failed to start; /ready stays 503. The cause is logged above.")
            await self._end()
            return False
        seconds = time.perf_counter() - start
        self._metrics.engine_started(seconds)
        logger.info("Ready after %.1f s", seconds)
        return True

    async def _live(self) -> None:
        """Reload the adapters, and wait until the engine dies, which may happen before all are loaded."""
        restoring = asyncio.create_task(self._restore())
        try:
            await self._engine.wait_until_dead()
            logger.error("The engine died.")
        except BaseException as error:  # boundary: nobody knows whether it lives
            if is_told_to_end(error):
                raise
            self._metrics.failures.note("supervisor", error, "Watching the engine failed")
        finally:
            restoring.cancel()
            await asyncio.gather(restoring, return_exceptions=True)

    async def _restore(self) -> None:
        try:
            await self._watcher.follow_all()
            self._lost = await self._residency.restore(self._lost)
        except Exception as error:  # boundary: they are loaded when somebody asks for them
            self._metrics.failures.note("supervisor", error, "Reloading the adapters failed")

    async def _end(self) -> None:
        """Stop the engine; an error here must not prevent the next start."""
        try:
            await self._engine.stop()
        except Exception as error:  # boundary
            self._metrics.failures.note("supervisor", error, "Stopping the engine failed")
