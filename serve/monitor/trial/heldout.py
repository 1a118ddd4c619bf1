"""Held-out questions: replay each resident version's evaluation questions, a few at a time.

Questions have the lowest priority and wait until clients are idle, because even one more row makes a batch's steps
longer. Only a trial's questions, whose verdict is awaited, run among clients' requests. A version is asked the same
question again after a day: a second greedy answer adds nothing unless the engine, the base or the machine has changed.
A canary is asked stable's questions once, each at the same time as stable, because the verdict compares pair by pair.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from quality.samples.store import QualityStore
from serve.clock import is_within, steady_time
from serve.monitor.protocol import MonitoredServer
from serve.monitor.trial.asker import QuestionAsker
from serve.monitor.trial.general import GeneralMeasure
from serve.monitor.trial.quiz import HeldOutListener
from serve.monitor.trial.quizzes import Questions, Quizzes
from serve.monitor.trial.scores import QuizScores


@dataclass(frozen=True)
class HeldOutPace:
    """How often versions are asked, seconds.

    Attributes:
        interval_s: Pause between two turns.
        again_s: A version is asked the same question again after so long.
        patience_s: While clients' requests run, all but canaries are asked no more often than this.
        at_once: Questions in the engine at most.
    """

    interval_s: float
    again_s: float
    patience_s: float
    at_once: int


class HeldOut:
    """The loop: in each turn it chooses questions, has them asked, and keeps the scores."""

    def __init__(
        self,
        server: MonitoredServer,
        quizzes: Quizzes,
        asker: QuestionAsker,
        scores: QuizScores,
        general: GeneralMeasure,
        pace: HeldOutPace,
        clock: Callable[[], float],
    ) -> None:
        self._server = server
        self._quizzes = quizzes
        self._asker = asker
        self._scores = scores
        self._general = general
        self._pace = pace
        self._clock = clock
        self._last_turn_s = clock()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(self._pace.interval_s)
            if self._server.engine.is_ready:
                try:
                    await self.take_turn()
                except Exception as error:  # boundary of a loop: a full disk or a broken history must not end it
                    self._server.metrics.failures.note("held_out", error, "A round of held-out questions failed")

    async def take_turn(self) -> None:
        """Ask one round of questions and store the scores; while clients' requests run, for trials only."""
        is_for_all = self._is_for_all()
        quizzes = await self._quizzes.follow(tuple(self._server.versions.residents))
        chosen = self._quizzes.choose([quiz for quiz in quizzes if is_for_all or quiz.due.trial is not None])
        scored = await asyncio.gather(*(self._asker.put(quiz, index) for quiz, index in chosen))
        await self._scores.keep([one for one in scored if one.scores is not None])
        if is_for_all:
            await self._general.measure_next()

    def _is_for_all(self) -> bool:
        """Whether this turn is one for every version: in a pause of the clients, or after a long wait for one."""
        now_s = self._clock()
        if self._server.is_busy() and is_within(now_s, self._last_turn_s, self._pace.patience_s):
            return False
        self._last_turn_s = now_s
        return True


def held_out(
    server: MonitoredServer,
    store: QualityStore,
    listener: HeldOutListener | None,
    pace: HeldOutPace,
    max_model_len: int,
    *,
    rng: random.Random | None = None,
    clock: Callable[[], float] = steady_time,
) -> HeldOut:
    """The loop, with all that it is made of.

    Args:
        listener: None where nobody judges canaries.
        max_model_len: The server's setting of that name, tokens.
    """
    scores = QuizScores(store, server.metrics.quality, listener, clock)
    questions = Questions(server.adapters)
    quizzes = Quizzes(
        server.adapters,
        questions,
        scores,
        again_s=pace.again_s,
        at_once=pace.at_once,
        rng=rng or random.Random(),
        clock=clock,
    )
    asker = QuestionAsker(server, pace.at_once, clock)
    general = GeneralMeasure(server, questions, store, max_model_len, clock)
    return HeldOut(server, quizzes, asker, scores, general, pace, clock)
