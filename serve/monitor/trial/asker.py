"""Puts a held-out question to one version, or to the two of a trial at the same time."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from adapters.reference import Target
from adapters.store.manifest import RequestDefaults
from quality.held_out import HeldOutQuestion, HeldOutSet
from quality.metrics.item import LeftOut
from quality.metrics.served import score_one
from serve.engine.protocol import BACKGROUND_PRIORITY
from serve.errors import AdapterRefusedError, NotReadyError, ServeError
from serve.monitor.protocol import FillDefaults, MonitoredServer
from serve.monitor.trial.quiz import Quiz, Scored
from serve.records import Caller, EvaluationResult

logger = logging.getLogger(__name__)


class _NoScoreError(Exception):
    """The metric cannot score answers to this question."""


class QuestionAsker:
    """Asks the engine, and scores its answers.

    Args:
        at_once: Questions in the engine at most.
    """

    def __init__(self, server: MonitoredServer, at_once: int, clock: Callable[[], float]) -> None:
        self._server = server
        self._clock = clock
        self._places = asyncio.Semaphore(at_once)

    async def put(self, quiz: Quiz, index: int) -> Scored:
        """One question to all of a quiz at the same time."""
        question = quiz.held_out.questions[index]
        if len(quiz.targets) == 1:
            quiz.asked_s[index] = self._clock()
        try:
            scores = await _all_of(self._score(target, question, quiz) for target in quiz.targets)
        except NotReadyError as error:
            logger.info("A held-out question of %s waits: %s", quiz.targets[-1], error)
            quiz.left.insert(0, index)
            return Scored(quiz, index, None)
        except (ServeError, _NoScoreError) as error:
            logger.info("Cannot ask held-out question %d of %s: %s", index, quiz.targets[0], error)
            return Scored(quiz, index, None)
        except BaseException:  # also that this turn is cancelled: the question stays
            quiz.left.insert(0, index)
            raise
        return Scored(quiz, index, scores)

    async def _score(self, target: Target, question: HeldOutQuestion, quiz: Quiz) -> float:
        """The metric's score of the version's answer, 0 to 1; 0 where the version is refused.

        Raises:
            ServeError: The question could not be asked, which says nothing of the version.
            _NoScoreError: The metric has no score for this question.
        """
        try:
            async with self._places:
                with await self._server.versions.lease(target) as lease:
                    body = _body(target, question, quiz.held_out, lease.manifest.defaults, self._server.fill_defaults)
                    answer = await self._server.engine.answer("chat/completions", body, Caller("monitor"))
        except AdapterRefusedError as error:
            logger.info("Held-out question to %s failed: %s", target, error)
            return 0.0
        assert isinstance(answer.body, dict)  # no stream was asked for
        text = answer.body["choices"][0]["message"]["content"] or ""
        asked, right, in_scope = question.messages[-1].content, question.expected, question.in_scope
        # In a thread: of long answers some metrics take a while.
        score = await asyncio.to_thread(score_one, quiz.metric, asked, right, text, in_scope=in_scope)
        if isinstance(score, LeftOut):
            raise _NoScoreError(score.reason)
        label = {0.0: "fail", 1.0: "pass"}[score] if quiz.metric.kind == "share" else None
        result = EvaluationResult(quiz.metric.name, str(target), score, label, response_id=answer.body.get("id"))
        self._server.metrics.evaluated.tell(result)
        return score


async def _all_of(work: Iterable[Coroutine[Any, Any, float]]) -> tuple[float, ...]:
    """All results, once the last one is there; then the first error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return tuple(result for result in results if not isinstance(result, BaseException))


def _body(
    target: Target,
    question: HeldOutQuestion,
    held_out: HeldOutSet,
    defaults: RequestDefaults | None,
    fill_defaults: FillDefaults,
) -> dict[str, Any]:
    """The question, with all else left to the version; what that has no default for, the set has."""
    own = defaults or RequestDefaults()
    messages = [turn.model_dump() for turn in question.messages if turn.role != "system" or own.system is None]
    body = {"model": str(target), "messages": messages, "priority": BACKGROUND_PRIORITY}
    asked = RequestDefaults(temperature=0.0, max_tokens=held_out.max_tokens, stop=held_out.stop)
    asked = RequestDefaults.model_validate(asked.given | own.given)
    return fill_defaults(body, asked)
