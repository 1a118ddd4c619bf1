"""Scores of held-out questions: kept in the quality store, shown in the metrics, told to whoever judges a trial."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from adapters.reference import Target
from adapters.release.trials import Trial
from adapters.scores import bounded_score
from quality.samples.records import HeldOutScore
from quality.samples.store import QualityStore
from serve.monitor.protocol import QualityMeter
from serve.monitor.trial.quiz import HeldOutListener, Quiz, Scored


class QuizScores:
    """How well the versions have answered, also before this process.

    Args:
        listener: None where nobody judges canaries.
    """

    def __init__(
        self, store: QualityStore, meter: QualityMeter, listener: HeldOutListener | None, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._meter = meter
        self._listener = listener
        self._clock = clock

    def counted(self, name: str, trial: Trial | None) -> Collection[int] | None:
        """The questions that a trial needs no more; None where it is not followed yet."""
        return () if trial is None or self._listener is None else self._listener.questions_counted(name, trial)

    async def remember(self, quiz: Quiz) -> None:
        """Start from the scores that are kept. What a version was asked alone, it is not asked alone again so soon."""
        for target in (target for target, is_own in zip(quiz.targets, quiz.is_own, strict=True) if is_own):
            kept = await asyncio.to_thread(self._store.held_out_scores, target.name, target.version)
            quiz.scores[target] = {
                score.question: score.score for score in kept if score.question < len(quiz.held_out.questions)
            }
            self._show(quiz, target)
            if len(quiz.targets) == 1:
                quiz.asked_s = {score.question: score.at_s for score in kept if score.question in quiz.scores[target]}
        if len(quiz.targets) == 1:
            quiz.left = [index for index in quiz.left if index not in quiz.scores[quiz.targets[0]]]

    async def keep(self, scored: Sequence[Scored]) -> None:
        """Those of one turn."""
        rows: list[HeldOutScore] = []
        for one in scored:
            quiz, at_s = one.quiz, self._clock()
            for target, score, is_own in zip(quiz.targets, one.scores or (), quiz.is_own, strict=True):
                quiz.scores.setdefault(target, {})[one.question] = score
                self._show(quiz, target)
                if is_own:
                    rows.append(HeldOutScore(at_s, target.name, target.version, one.question, score))
            if self._listener is not None and one.scores is not None and quiz.due.trial is not None:
                scores = one.scores[0], one.scores[1]
                self._listener.question_scored(quiz.targets[0].name, quiz.due.trial, one.question, scores)
        if rows:
            await asyncio.to_thread(self._store.add_held_out_scores, rows)

    def _show(self, quiz: Quiz, target: Target) -> None:
        if scores := quiz.scores.get(target):
            self._meter.held_out_scored(target, bounded_score(list(scores.values())))
