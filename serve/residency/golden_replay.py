"""Golden replay: ask resident versions their golden prompts continuously, and compare with their own answers."""

import asyncio
import logging
import math

from adapters.reference import Target
from serve.engine.protocol import Engine
from serve.errors import BaseNotFiniteError, NotFiniteError, ServeError
from serve.observe.metrics import ServeMetrics
from serve.residency.parity import Tolerance, judge_parity, replay
from serve.residency.residency import Residency

logger = logging.getLogger(__name__)


class GoldenReplay:
    """Replays one resident version's fingerprint at a time; a version that answers as another fails its own."""

    def __init__(
        self, engine: Engine, residency: Residency, metrics: ServeMetrics, *, interval_s: float, tolerance: Tolerance
    ) -> None:
        self._engine = engine
        self._residency = residency
        self._metrics = metrics
        self._interval_s = interval_s
        self._tolerance = tolerance
        self._last: Target | None = None

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                if self._engine.is_ready and (target := self._next()) is not None:
                    await self.check(target)
            except ServeError as error:
                logger.info("Golden replay of %s failed: %s", self._last, error)
            except Exception as error:  # boundary of a loop: the other versions must be checked all the same
                self._metrics.failures.note("golden_replay", error, f"Golden replay of {self._last} failed")

    async def check(self, target: Target) -> bool:
        """Replay one version's fingerprint; whether it answered as itself.

        Raises:
            ServeError: It could not be asked.
        """
        with await self._residency.lease(target):
            resident = self._residency.residents[target]
            assert resident.fingerprint is not None  # `_next` chooses no other
            try:
                served = await replay(resident.fingerprint, self._engine, target)
            except (NotFiniteError, BaseNotFiniteError) as error:
                return self._not_finite(target, error)
        parity = judge_parity(resident.fingerprint, served, self._tolerance)
        self._metrics.golden_replay_finished(target, parity.adapter_error_nats, is_ok=parity.is_ok)
        if not parity.is_ok:
            logger.error("%s no longer gives its own answers: %s", target, parity.reason)
        return parity.is_ok

    def _not_finite(self, target: Target, error: ServeError) -> bool:
        self._metrics.golden_replay_finished(target, math.nan, is_ok=False)
        logger.error("%s no longer gives its own answers: %s", target, error)
        if isinstance(error, NotFiniteError):
            self._residency.quarantine.add(target)
        return False

    def _next(self) -> Target | None:
        """The resident versions with a fingerprint that are in service, in turn."""
        is_out = self._residency.quarantine.reason
        targets = [t for t, resident in self._residency.residents.items() if resident.fingerprint and not is_out(t)]
        targets.sort(key=str)
        later = [target for target in targets if self._last is None or str(target) > str(self._last)]
        self._last = next(iter(later or targets), None)
        return self._last
