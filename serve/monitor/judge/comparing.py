"""A canary's answers against stable's: stable is asked the same prompt, and the judge which answer is better.

The canary's answer was drawn as its client asked for it, stable's is greedy; so a preference says less than held-out
questions do, which both are asked alike. It is for domains where no answer can be checked.
"""

import asyncio
import logging
import re
from collections.abc import Callable

from adapters.errors import AdapterError
from adapters.reference import Target
from adapters.store.reader import StoreReader
from quality.judge import Choice, choice_task, preference, read_choice
from quality.samples.records import Grade, Sample, preference_judge
from quality.samples.store import QualityStore
from serve.clock import steady_time
from serve.engine.protocol import BACKGROUND_PRIORITY, Engine
from serve.errors import ServeError
from serve.monitor.judge.calls import JudgeCalls
from serve.monitor.protocol import LeasedVersions
from serve.records import Caller

logger = logging.getLogger(__name__)

_MAX_TOKENS = 512
_ANSWER_TIMEOUT_S = 120.0
_REDACTED = re.compile(r"\[[A-Z]{2,8}\]")
_SCORES: dict[Choice, float] = {"first": 0.0, "tie": 0.5, "second": 1.0}


class Comparing:
    """Asks stable what a canary was asked, at the lowest priority."""

    def __init__(
        self,
        engine: Engine,
        versions: LeasedVersions,
        adapters: StoreReader,
        store: QualityStore,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._engine = engine
        self._versions = versions
        self._adapters = adapters
        self._store = store
        self._clock = clock

    async def compare(self, calls: JudgeCalls, sample: Sample, rubric: str | None) -> Grade | None:
        """Keep a score of 1 where the canary's answer is better in both orders, 0 where stable's is, else 0.5.

        Does nothing, and returns None, for a sample of no canary, or one that was compared already.

        Raises:
            OverBudgetError, JudgeCallError: As `JudgeCalls.call`.
        """
        stable = await asyncio.to_thread(self._rival, sample)
        if stable is None:
            return None
        judge = preference_judge(calls.judge.name, str(stable))
        if await asyncio.to_thread(lambda: self._store.grades(sample_id=sample.id, judge=judge)):
            return None
        prompt, answer = sample.prompt or "", sample.answer or ""
        other = await self._answer(stable, prompt)
        if other is None:
            return None
        shown = await calls.call(choice_task(prompt, other, answer, rubric), read_choice)
        swapped = await calls.call(choice_task(prompt, answer, other, rubric), read_choice)
        score = _SCORES[preference(shown.better, swapped.better)]
        grade = Grade(sample.id, judge, self._clock(), score, shown.reason)
        try:
            await asyncio.to_thread(self._store.add_grade, grade)
        except KeyError:
            logger.info("Sample %d was deleted before it was judged", sample.id)
        return grade

    def _rival(self, sample: Sample) -> Target | None:
        """Stable, where the sample is of a canary beside it and its prompt is the one that was asked."""
        was_changed = sample.privacy == "redacted" and _REDACTED.search(sample.prompt or "")
        if not sample.version or not sample.prompt or was_changed:
            return None
        try:
            trial = self._adapters.trial(sample.adapter)
        except AdapterError:
            return None
        return Target(sample.adapter, trial.stable) if trial and trial.canary == sample.version else None

    async def _answer(self, stable: Target, prompt: str) -> str | None:
        """None where stable cannot be asked now; the sample is then graded alone."""
        body = {
            "model": str(stable),
            "prompt": prompt,
            "add_special_tokens": False,  # the prompt has the chat template's
            "max_tokens": _MAX_TOKENS,
            "temperature": 0,
            "priority": BACKGROUND_PRIORITY,
        }
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                with await self._versions.lease(stable):
                    answer = await self._engine.answer("completions", body, Caller("monitor"))
        except (ServeError, TimeoutError) as error:
            logger.info("%s gives no answer to compare the canary's with: %s", stable, error)
            return None
        assert isinstance(answer.body, dict)  # no stream was asked for
        text: str = answer.body["choices"][0]["text"]
        return text
