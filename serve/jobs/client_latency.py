"""Effect of a training on clients: p99 inter-token latency now and without training."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

from adapters.jobs.pressure import Pressure
from serve.jobs.services import JobServices
from serve.records import GenerationRecord, Source

_EVERY_S = 2.0
_WINDOW_S = 10.0
_MIN_GAPS = 20
_MIN_BASELINE_GAPS = 200
_MAX_GAPS = 4096


class ClientLatency:
    """Writes the ratio of both while a job runs; the worker pauses the job at `jobs.yield_at`.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, services: JobServices, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._services = services
        self._pressure = Pressure(services.database)
        self._clock = clock
        self._gaps: deque[tuple[float, float]] = deque(maxlen=_MAX_GAPS)
        self._baseline: deque[float] = deque(maxlen=_MAX_GAPS)
        self._is_training = False

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        pass

    def generation_finished(self, record: GenerationRecord) -> None:
        """Record the inter-token latencies of a client's streamed answer."""
        if record.source != "client":
            return
        if self._is_training:
            now_s = self._clock()
            self._gaps.extend((now_s, gap_s) for gap_s in record.itl_s)
        else:
            self._baseline.extend(record.itl_s)

    async def run(self) -> None:
        """Update every two seconds, until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(_EVERY_S)

    async def _look(self) -> None:
        counts = await self._services.run(self._services.queue.counts)
        self._is_training = counts.get("running", 0) > 0
        while self._gaps and self._gaps[0][0] < self._clock() - _WINDOW_S:
            self._gaps.popleft()
        if self._is_training:
            await self._services.run(self._pressure.write, self.ratio())

    def ratio(self) -> float:
        """p99 now by p99 without training; 1 if there are too few measurements of either."""
        if len(self._gaps) < _MIN_GAPS or len(self._baseline) < _MIN_BASELINE_GAPS:
            return 1.0
        return _p99(gap_s for _, gap_s in self._gaps) / max(_p99(self._baseline), 1e-6)


def _p99(gaps_s: Iterable[float]) -> float:
    ordered = sorted(gaps_s)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
