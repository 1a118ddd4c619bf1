"""Whose turn it is: which versions are asked alone, which beside each other, and which question is next."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count

from adapters.errors import AdapterError
from adapters.reference import DEFAULT_ALIAS, Target
from adapters.store.reader import StoreReader
from quality.errors import MetricError
from quality.held_out import HeldOutSet, InvalidHeldOutError, read_held_out
from quality.metrics.item import Metric
from quality.metrics.served import served_metric
from quality.scorers import AnswerFormat
from serve.clock import is_within
from serve.monitor.trial.quiz import Due, Quiz, Urgency
from serve.monitor.trial.scores import QuizScores

logger = logging.getLogger(__name__)


class Questions:
    """The questions that versions were published with, each read once while it is asked."""

    def __init__(self, adapters: StoreReader) -> None:
        self._adapters = adapters
        self._sets: dict[Target, HeldOutSet | None] = {}
        self._metrics: dict[Target, Metric | None] = {}

    async def of(self, target: Target) -> HeldOutSet | None:
        """A version's questions; says once where it has none. One that is still to be fetched has none for now."""
        if target not in self._sets:
            try:
                held_out = await asyncio.to_thread(lambda: read_held_out(self._adapters.folder(target)))
            except (AdapterError, InvalidHeldOutError, OSError) as error:
                logger.debug("Cannot read the held-out questions of %s now: %s", target, error)
                return None
            if held_out is None or not held_out.questions:
                logger.info("%s has no held-out questions: it was published without them.", target)
            # The drift baseline is the larger part, and nobody needs it here.
            self._sets[target] = held_out.model_copy(update={"baseline": ()}) if held_out else None
        return self._sets[target]

    async def metric(self, target: Target, held_out: HeldOutSet) -> Metric | None:
        """What scores answers to a version's questions; says once where its manifest lacks what the metric needs."""

        def make() -> Metric:
            manifest = self._adapters.manifest(target)
            refusal = manifest.quality.refusal if manifest.quality else None
            return served_metric(held_out.metric, AnswerFormat(manifest.answer_schema), refusal)

        if target not in self._metrics:
            try:
                self._metrics[target] = await asyncio.to_thread(make)
            except AdapterError as error:
                logger.debug("Cannot read the manifest of %s now: %s", target, error)
                return None
            except MetricError as error:
                logger.warning("The held-out questions of %s cannot be scored: %s", target, error)
                self._metrics[target] = None
        return self._metrics[target]

    def keep_only(self, targets: Iterable[Target]) -> None:
        """Forget those of all other versions."""
        wanted = set(targets)
        self._sets = {target: held_out for target, held_out in self._sets.items() if target in wanted}
        self._metrics = {target: metric for target, metric in self._metrics.items() if target in wanted}


class Quizzes:
    """The quizzes of the resident versions: canaries and their stable ones first, then stable ones, then others.

    Args:
        again_s: A version is asked the same question again after so long.
        at_once: Questions of one turn at most.
    """

    def __init__(
        self,
        adapters: StoreReader,
        questions: Questions,
        scores: QuizScores,
        *,
        again_s: float,
        at_once: int,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._adapters = adapters
        self._questions = questions
        self._scores = scores
        self._again_s = again_s
        self._at_once = at_once
        self._rng = rng
        self._clock = clock
        self._numbers = count(1)
        self._quizzes: dict[tuple[Target, ...], Quiz] = {}

    async def follow(self, residents: Sequence[Target]) -> list[Quiz]:
        """The quizzes of these versions now; those of versions that are gone are forgotten."""
        ranked = await asyncio.to_thread(self._rank, residents)
        quizzes = [await self._quiz(targets, due) for targets, due in ranked.items()]
        self._keep_only(ranked)
        return [quiz for quiz in quizzes if quiz is not None]

    def choose(self, quizzes: Sequence[Quiz]) -> list[tuple[Quiz, int]]:
        """Questions for one turn: of the most urgent, then of whoever waits longest; always at least one."""
        chosen: list[tuple[Quiz, int]] = []
        num_free = self._at_once
        while left := [quiz for quiz in quizzes if quiz.left]:
            quiz = min(left, key=lambda quiz: (quiz.due.urgency, quiz.asked_at))
            if chosen and num_free < len(quiz.targets):
                break
            chosen.append((quiz, quiz.left.pop()))
            quiz.asked_at = next(self._numbers)
            num_free -= len(quiz.targets)
        return chosen

    def _rank(self, residents: Sequence[Target]) -> dict[tuple[Target, ...], Due]:
        """Who is to be asked, alone or beside another, and how urgently."""
        ranked: dict[tuple[Target, ...], Due] = {}
        for name in sorted({target.name for target in residents}):
            try:
                trial, aliases = self._adapters.trial(name), self._adapters.aliases(name)
            except (AdapterError, OSError) as error:
                logger.warning("%s is treated as having no aliases: %s", name, error)
                continue
            if trial is not None:
                ranked[Target(name, trial.stable), Target(name, trial.canary)] = Due(Urgency.TRIAL, trial)
            elif DEFAULT_ALIAS in aliases and (current := Target(name, aliases[DEFAULT_ALIAS])) in residents:
                ranked[current,] = Due(Urgency.STABLE)
        known = {target for targets in ranked for target in targets}
        return ranked | {(target,): Due(Urgency.OTHER) for target in sorted(residents, key=str) if target not in known}

    async def _quiz(self, targets: tuple[Target, ...], due: Due) -> Quiz | None:
        """The quiz of these versions; None where the first one has no questions, or their trial is not followed yet."""
        if targets not in self._quizzes or self._quizzes[targets].due.trial != due.trial:
            counted = self._scores.counted(targets[0].name, due.trial)
            if counted is None:
                return None
            sets = [await self._questions.of(target) for target in targets]
            if sets[0] is None or not sets[0].questions:
                return None
            metric = await self._questions.metric(targets[0], sets[0])
            if metric is None:
                return None
            is_own = tuple(own is not None and own.asks_as(sets[0]) for own in sets)
            left = [index for index in range(len(sets[0].questions)) if index not in counted]
            quiz = Quiz(targets, sets[0], metric, is_own, left, due)
            await self._scores.remember(quiz)
            self._rng.shuffle(quiz.left)
            self._quizzes[targets] = quiz
        quiz = self._quizzes[targets]
        quiz.due = due
        if not quiz.left:
            quiz.left = self._due_again(quiz)
        return quiz

    def _due_again(self, quiz: Quiz) -> list[int]:
        """What a version alone was asked so long ago that it is asked again, in random order."""
        now_s = self._clock()
        due = [index for index, at_s in quiz.asked_s.items() if not is_within(now_s, at_s, self._again_s)]
        self._rng.shuffle(due)
        return due

    def _keep_only(self, ranked: Mapping[tuple[Target, ...], Due]) -> None:
        """Drop what is no longer resident, or no longer beside another; a new trial asks everything anew."""
        self._quizzes = {targets: quiz for targets, quiz in self._quizzes.items() if targets in ranked}
        self._questions.keep_only(target for targets in ranked for target in targets)
