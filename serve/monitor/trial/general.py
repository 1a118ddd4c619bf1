"""The general text, measured on the versions as they are served: what an adapter has forgotten of it."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from adapters.reference import Target
from quality.samples.records import GeneralScore
from quality.samples.store import QualityStore
from serve.clock import is_within
from serve.errors import NotFiniteError, ServeError
from serve.monitor.protocol import MonitoredServer
from serve.monitor.trial.quizzes import Questions

logger = logging.getLogger(__name__)

_EVERY_S = 6 * 3600.0


class GeneralMeasure:
    """Mean negative log-likelihood of the general text that each version brings, nats per token.

    Args:
        max_model_len: The server's setting of that name, tokens.
    """

    def __init__(
        self,
        server: MonitoredServer,
        questions: Questions,
        store: QualityStore,
        max_model_len: int,
        clock: Callable[[], float],
    ) -> None:
        self._server = server
        self._questions = questions
        self._store = store
        self._max_model_len = max_model_len
        self._clock = clock
        self._measured: dict[Target, tuple[object, float]] = {}

    async def measure_next(self) -> None:
        """Measure one version that was loaded since, or was not measured for hours."""
        residents = self._server.versions.residents
        self._measured = {target: seen for target, seen in self._measured.items() if target in residents}
        for target, resident in residents.items():
            measured, at_s = self._measured.get(target, (None, 0.0))
            if measured is resident and is_within(self._clock(), at_s, _EVERY_S):
                continue
            self._measured[target] = resident, self._clock()
            held_out = await self._questions.of(target)
            if held_out is not None and held_out.general is not None:
                await self._measure(target, held_out.general.token_ids)
                return

    async def _measure(self, target: Target, token_ids: Sequence[int]) -> None:
        if len(token_ids) >= self._max_model_len:
            logger.info("%s: the general text has %d tokens, too many for this server", target, len(token_ids))
            return
        try:
            with await self._server.versions.lease(target):
                logprobs = await self._server.finite_logprobs(token_ids, target)
        except NotFiniteError:
            self._server.versions.quarantine.add(target)
            return
        except ServeError as error:
            logger.info("Measuring the general text of %s failed: %s", target, error)
            return
        nll = -sum(logprobs) / len(logprobs)
        self._server.metrics.quality.general_measured(target, nll)
        score = GeneralScore(self._clock(), target.name, target.version, nll)
        await asyncio.to_thread(self._store.add_general_score, score)
