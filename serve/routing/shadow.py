"""Shadow copies of requests for a canary: low priority, few at a time, answers are discarded."""

import asyncio
import logging
from typing import Any

from adapters.reference import Target
from serve.engine.protocol import BACKGROUND_PRIORITY, Endpoint, Engine
from serve.errors import ServeError
from serve.limits.defaults import AnswerLengths, fill_defaults
from serve.observe.metrics import ServeMetrics
from serve.records import Caller
from serve.residency.residency import Residency

logger = logging.getLogger(__name__)

_MAX_AT_ONCE = 2


class Shadow:
    """Send copies up to a limit of running ones and drop the rest: clients must not wait for copies."""

    def __init__(self, engine: Engine, residency: Residency, metrics: ServeMetrics, lengths: AnswerLengths) -> None:
        self._engine = engine
        self._residency = residency
        self._metrics = metrics
        self._lengths = lengths
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, endpoint: Endpoint, body: dict[str, Any], target: Target) -> None:
        """Send a copy of a request, as its client sent it, to another version, in the background."""
        if len(self._running) >= _MAX_AT_ONCE:
            self._metrics.shadow_finished(target, "dropped")
            return
        copy = body | {"model": str(target), "priority": BACKGROUND_PRIORITY, "stream": False}
        copy.pop("stream_options", None)  # vLLM refuses it without `stream`
        task = asyncio.create_task(self._send(endpoint, copy, target))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def drain(self) -> None:
        """Wait for the running copies."""
        await asyncio.gather(*self._running)

    async def stop(self) -> None:
        """Cancel the running copies."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _send(self, endpoint: Endpoint, body: dict[str, Any], target: Target) -> None:
        try:
            with await self._residency.lease(target) as lease:
                filled = fill_defaults(body, endpoint, lease.manifest.defaults, self._lengths)
                await self._engine.answer(endpoint, filled.body, Caller("shadow"))
        except ServeError as error:
            logger.info("Shadow request to %s failed: %s", target, error)
            self._metrics.shadow_finished(target, "error")
        except Exception as error:  # boundary of a task that nobody waits for
            self._metrics.failures.note("shadow", error, f"Shadow request to {target} failed")
            self._metrics.shadow_finished(target, "error")
        else:
            self._metrics.shadow_finished(target, "ok")
