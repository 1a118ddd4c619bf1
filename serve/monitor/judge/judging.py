"""The judge's loop: sampled answers that have text, graded one after another beside the traffic.

Nothing here touches a client's request: the loop reads what is stored already and asks elsewhere, or this engine at the
lowest priority. What fails is counted, logged and left out.
"""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from statistics import fmean
from typing import NamedTuple

from adapters.errors import AdapterError
from adapters.reference import Target
from adapters.store.reader import StoreReader
from config.monitor import JudgeConfig
from quality.agreement import agreement_of_scores, labels_and_grades
from quality.judge import grade_task, read_grade
from quality.samples.records import Grade, Sample, preference_judge
from quality.samples.store import QualityStore
from serve.background import Backoff
from serve.clock import is_within, steady_time
from serve.monitor.judge.asking import Judge, JudgeCallError
from serve.monitor.judge.calls import JudgeCalls, OverBudgetError
from serve.monitor.judge.comparing import Comparing
from serve.monitor.judge.results import result_of
from serve.monitor.protocol import MonitorMetrics

logger = logging.getLogger(__name__)

_MAX_PER_ROUND = 20
_IDLE_S = 15.0
_SHOW_EVERY_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 3600.0


class _Judged(NamedTuple):
    """What the judge has said of one version."""

    version: int
    scores: tuple[float, ...]
    preferences: tuple[float, ...]
    pairs: list[tuple[float, float]]
    """People's score and the judge's, of one answer."""


class Judging:
    """Grades samples, and shows how far the grades agree with people's labels."""

    def __init__(
        self,
        judge: Judge,
        store: QualityStore,
        metrics: MonitorMetrics,
        config: JudgeConfig,
        adapters: StoreReader,
        comparing: Comparing | None = None,
        *,
        clock: Callable[[], float] = steady_time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._judge = judge
        self._store = store
        self._metrics = metrics
        self._config = config
        self._adapters = adapters
        self._comparing = comparing
        self._calls = JudgeCalls(judge, store, metrics, config, clock=clock, sleep=sleep, jitter=jitter)
        self._clock = clock
        self._sleep = sleep
        self._shown_s = float("-inf")
        self._left_out: set[int] = set()
        self._backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._is_over_budget = False

    async def run(self) -> None:
        """Grade until cancelled."""
        while True:
            try:
                await self._sleep(await self.round())
            except Exception as error:  # boundary of a loop: a store that is full today may take grades tomorrow
                self._metrics.failures.note("judging", error, "Judging failed")
                await self._sleep(_SHOW_EVERY_S)

    async def round(self) -> float:
        """Grade the newest samples that are drawn and have no grade; returns seconds to wait before the next round."""
        if not is_within(self._clock(), self._shown_s, _SHOW_EVERY_S):
            await self.show()
        if not self._judge.is_ready:
            return _IDLE_S
        samples = await asyncio.to_thread(self._waiting)
        for sample in samples:
            try:
                await self._grade(sample)
            except OverBudgetError as error:
                self._over_budget(error)
                return _SHOW_EVERY_S
            except JudgeCallError as error:
                if error.outcome not in ("unreachable", "throttled"):  # these say nothing of the sample
                    self._left_out.add(sample.id)
                logger.warning("Sample %d was not graded: the judge %r %s", sample.id, self._judge.name, error)
                if error.outcome != "invalid":
                    return self._pause_s(error)
            self._backoff.reset()
            self._is_over_budget = False
        return _IDLE_S if len(samples) < _MAX_PER_ROUND else 0.0

    async def show(self) -> None:
        """Export mean scores by version, and the agreement with people by adapter."""
        self._shown_s = self._clock()
        for adapter, versions in (await asyncio.to_thread(self._judged)).items():
            agreement = agreement_of_scores([pair for judged in versions for pair in judged.pairs])
            self._metrics.judge.agrees(adapter, agreement)
            is_calibrated = agreement.n >= self._config.min_labels
            # Labels of a version that was removed still tell of the judge; it has no series any more.
            for judged in versions:
                if judged.version and not self._adapters.has_version(Target(adapter, judged.version)):
                    continue
                if judged.scores:
                    mean = fmean(judged.scores)
                    self._metrics.judge.judged(adapter, judged.version, mean, is_calibrated=is_calibrated)
                if judged.preferences:
                    self._metrics.judge.preferred(adapter, judged.version, fmean(judged.preferences))

    def _judged(self) -> dict[str, list[_Judged]]:
        by_adapter = defaultdict(list)
        preferring = preference_judge(self._judge.name, "")
        for adapter, version in self._store.versions():
            grades = self._store.grades(adapter, version)
            own = [grade for grade in grades if grade.judge == self._judge.name]
            preferences = tuple(grade.score for grade in grades if grade.judge.startswith(preferring))
            if own or preferences:
                pairs = labels_and_grades(self._store.labels(adapter, version), own)
                scores = tuple(grade.score for grade in own)
                by_adapter[adapter].append(_Judged(version, scores, preferences, pairs))
        return by_adapter

    def _waiting(self) -> list[Sample]:
        """The newest first: they tell most of what is served now."""
        limit = _MAX_PER_ROUND + len(self._left_out)
        samples = self._store.ungraded(self._judge.name, limit, self._config.sample_rate)
        return [sample for sample in reversed(samples) if sample.id not in self._left_out][:_MAX_PER_ROUND]

    async def _grade(self, sample: Sample) -> None:
        rubric = await asyncio.to_thread(self._rubric, sample)
        if self._comparing is not None:
            preferred = await self._comparing.compare(self._calls, sample, rubric)
            if preferred is not None:
                self._metrics.evaluated.tell(result_of("judge_preference", sample, preferred))
        given = await self._calls.call(grade_task(sample.prompt or "", sample.answer or "", rubric), read_grade)
        grade = Grade(sample.id, self._judge.name, self._clock(), given.score, given.reason)
        self._metrics.evaluated.tell(result_of("judge", sample, grade))
        try:
            await asyncio.to_thread(self._store.add_grade, grade)
        except KeyError:
            logger.info("Sample %d was deleted before it was judged", sample.id)

    def _rubric(self, sample: Sample) -> str | None:
        """The domain's, as the version brought it."""
        try:
            target = Target(sample.adapter, sample.version)
            quality = self._adapters.manifest(target).quality if sample.version else None
        except AdapterError:
            return None  # removed since
        return quality.rubric if quality else None

    def _over_budget(self, error: OverBudgetError) -> None:
        if not self._is_over_budget:
            logger.warning("%s", error)
        self._is_over_budget = True

    def _pause_s(self, error: JudgeCallError) -> float:
        """A judge that fails is asked ever more seldom, an hour apart at most, or as it wishes."""
        return max(self._backoff.next_s(), min(error.retry_after_s or 0.0, _LONGEST_PAUSE_S))
