"""Held-out probes: each resident version is asked the questions that it was evaluated on, a few at a time, in full.

Probes wait behind all clients, and for a pause of theirs, for even a row at the end of a batch makes its steps longer:
only the questions of a canary's trial, for which somebody waits, are asked among clients' requests. A version is asked
each question again after a day, for a greedy answer says nothing new the second time unless something else than the
version has changed: the engine, the base, the machine. A canary is asked stable's questions once, each at the same time
as stable, for the verdict on it compares pair by pair.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from itertools import count
from typing import Any

from adapters.errors import AdapterError
from adapters.reference import DEFAULT_ALIAS, Target
from adapters.release.trials import Trial
from adapters.store.manifest import RequestDefaults
from quality.intervals import share_of
from quality.probes import HeldOutQuestion, InvalidProbesError, ProbeSet, read_probes
from quality.samples.records import GeneralScore, ProbeScore
from quality.samples.store import QualityStore
from quality.scorers import is_exact_match
from serve.clock import is_within, steady_time
from serve.engine.protocol import BACKGROUND_PRIORITY
from serve.errors import AdapterRefusedError, NotFiniteError, NotReadyError, ServeError
from serve.monitor.protocol import FillDefaults, MonitoredServer
from serve.monitor.trial.quiz import Due, ProbeListener, Quiz, Scored, Urgency
from serve.records import ask_as

logger = logging.getLogger(__name__)

_GENERAL_EVERY_S = 6 * 3600.0


class HeldOut:
    """Asks the resident versions, canaries and their stable ones first, then stable ones, then others.

    Args:
        listener: None where nobody judges canaries.
        interval_s: Pause between two turns.
        again_s: A version is asked the same question again after so long.
        patience_s: While clients' requests run, all but canaries are asked no more often than this.
        at_once: Questions in the engine at most.
        max_model_len: The server's setting of that name, tokens.
    """

    def __init__(
        self,
        server: MonitoredServer,
        store: QualityStore,
        listener: ProbeListener | None,
        *,
        interval_s: float,
        again_s: float,
        patience_s: float,
        at_once: int,
        max_model_len: int,
        rng: random.Random | None = None,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._server = server
        self._store = store
        self._listener = listener
        self._interval_s = interval_s
        self._again_s = again_s
        self._patience_s = patience_s
        self._last_turn_s = clock()
        self._at_once = at_once
        self._max_model_len = max_model_len
        self._rng = rng or random.Random()
        self._clock = clock
        self._numbers = count(1)
        self._places = asyncio.Semaphore(at_once)
        self._quizzes: dict[tuple[Target, ...], Quiz] = {}
        self._probes: dict[Target, ProbeSet | None] = {}
        self._measured: dict[Target, tuple[object, float]] = {}

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            if self._server.engine.is_ready:
                try:
                    await self.take_turn()
                except Exception as error:  # boundary of a loop: a full disk or a broken history must not end it
                    self._server.metrics.failures.note("held_out", error, "A turn of held-out probes failed")

    async def take_turn(self) -> None:
        """Ask as much as may be asked at once, and keep the scores; while clients run, in trials only."""
        is_for_all = self._is_for_all()
        ranked = await asyncio.to_thread(self._rank, tuple(self._server.versions.residents))
        quizzes = [await self._quiz(targets, due) for targets, due in ranked.items()]
        self._forget_all_but(ranked)
        asked = [quiz for quiz in quizzes if quiz is not None and (is_for_all or quiz.due.trial is not None)]
        chosen = self._choose(asked)
        scored = await asyncio.gather(*(self._put(quiz, index) for quiz, index in chosen))
        await self._keep([one for one in scored if one.scores is not None])
        if is_for_all:
            await self._measure_general()

    def _is_for_all(self) -> bool:
        """Whether this turn is one for every version: in a pause of the clients, or after a long wait for one."""
        now_s = self._clock()
        if self._server.is_busy() and is_within(now_s, self._last_turn_s, self._patience_s):
            return False
        self._last_turn_s = now_s
        return True

    def _rank(self, residents: Sequence[Target]) -> dict[tuple[Target, ...], Due]:
        """Who is to be asked, alone or beside another, and how urgently."""
        ranked: dict[tuple[Target, ...], Due] = {}
        for name in sorted({target.name for target in residents}):
            try:
                trial, aliases = self._server.adapters.trial(name), self._server.adapters.aliases(name)
            except (AdapterError, OSError) as error:
                logger.warning("%s is asked as one that has no aliases: %s", name, error)
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
            counted = self._counted(targets[0].name, due.trial)
            if counted is None:
                return None
            sets = [await self._probes_of(target) for target in targets]
            if sets[0] is None or not sets[0].probes:
                return None
            is_own = tuple(own is not None and own.probes == sets[0].probes for own in sets)
            left = [index for index in range(len(sets[0].probes)) if index not in counted]
            quiz = Quiz(targets, sets[0], is_own, left, due)
            await self._remember(quiz)
            self._rng.shuffle(quiz.left)
            self._quizzes[targets] = quiz
        quiz = self._quizzes[targets]
        quiz.due = due
        if not quiz.left:
            quiz.left = self._due_again(quiz)
        return quiz

    def _counted(self, name: str, trial: Trial | None) -> Collection[int] | None:
        return () if trial is None or self._listener is None else self._listener.probes_counted(name, trial)

    def _due_again(self, quiz: Quiz) -> list[int]:
        """What a version alone was asked so long ago that it is asked again, in random order."""
        now_s = self._clock()
        due = [index for index, at_s in quiz.asked_s.items() if not is_within(now_s, at_s, self._again_s)]
        self._rng.shuffle(due)
        return due

    async def _probes_of(self, target: Target) -> ProbeSet | None:
        """A version's questions; says once where it has none. One that is still to be fetched has none for now."""
        if target not in self._probes:
            try:
                probes = await asyncio.to_thread(lambda: read_probes(self._server.adapters.folder(target)))
            except (AdapterError, InvalidProbesError, OSError) as error:
                logger.debug("The questions of %s cannot be read now: %s", target, error)
                return None
            if probes is None or not probes.probes:
                logger.info("%s is not asked held-out questions: it was published without them.", target)
            # The drift baseline is the larger part, and nobody needs it here.
            self._probes[target] = probes.model_copy(update={"baseline": ()}) if probes else None
        return self._probes[target]

    async def _remember(self, quiz: Quiz) -> None:
        """Start from the scores that are kept. What a version was asked alone, it is not asked alone again so soon."""
        for target in (target for target, is_own in zip(quiz.targets, quiz.is_own, strict=True) if is_own):
            kept = await asyncio.to_thread(self._store.probe_scores, target.name, target.version)
            quiz.scores[target] = {score.probe: score.score for score in kept if score.probe < len(quiz.probes.probes)}
            self._show(quiz, target)
            if len(quiz.targets) == 1:
                quiz.asked_s = {score.probe: score.at_s for score in kept if score.probe in quiz.scores[target]}
        if len(quiz.targets) == 1:
            quiz.left = [index for index in quiz.left if index not in quiz.scores[quiz.targets[0]]]

    def _choose(self, quizzes: Sequence[Quiz]) -> list[tuple[Quiz, int]]:
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

    async def _put(self, quiz: Quiz, index: int) -> Scored:
        """One question to all of a quiz at the same time."""
        probe = quiz.probes.probes[index]
        if len(quiz.targets) == 1:
            quiz.asked_s[index] = self._clock()
        try:
            scores = await _all_of(self._score(target, probe, quiz.probes) for target in quiz.targets)
        except NotReadyError as error:
            logger.info("A probe of %s waits: %s", quiz.targets[-1], error)
            quiz.left.insert(0, index)
            return Scored(quiz, index, None)
        except ServeError as error:
            logger.info("Probe %d of %s cannot be asked: %s", index, quiz.targets[0], error)
            return Scored(quiz, index, None)
        except BaseException:  # also that this turn is cancelled: the question stays
            quiz.left.insert(0, index)
            raise
        return Scored(quiz, index, scores)

    async def _score(self, target: Target, probe: HeldOutQuestion, probes: ProbeSet) -> float:
        """1 where the version answers rightly, 0 where it does not, or is refused.

        Raises:
            ServeError: The question could not be asked, which says nothing of the version.
        """
        ask_as("probe")
        try:
            async with self._places:
                with await self._server.versions.lease(target) as lease:
                    body = _body(target, probe, probes, lease.manifest.defaults, self._server.fill_defaults)
                    answer = await self._server.engine.answer("chat/completions", body)
        except AdapterRefusedError as error:
            logger.info("Probe of %s: %s", target, error)
            return 0.0
        assert isinstance(answer.body, dict)  # no stream was asked for
        return float(is_exact_match(answer.body["choices"][0]["message"]["content"] or "", probe.expected))

    async def _keep(self, scored: Sequence[Scored]) -> None:
        rows: list[ProbeScore] = []
        for one in scored:
            quiz, at_s = one.quiz, self._clock()
            for target, score, is_own in zip(quiz.targets, one.scores or (), quiz.is_own, strict=True):
                quiz.scores.setdefault(target, {})[one.probe] = score
                self._show(quiz, target)
                if is_own:
                    rows.append(ProbeScore(at_s, target.name, target.version, one.probe, score))
            if self._listener is not None and one.scores is not None and quiz.due.trial is not None:
                scores = one.scores[0], one.scores[1]
                self._listener.probe_scored(quiz.targets[0].name, quiz.due.trial, one.probe, scores)
        if rows:
            await asyncio.to_thread(self._store.add_probe_scores, rows)

    def _show(self, quiz: Quiz, target: Target) -> None:
        if scores := quiz.scores.get(target):
            self._server.metrics.quality.probes_scored(target, share_of(round(sum(scores.values())), len(scores)))

    async def _measure_general(self) -> None:
        """The general text on one version that was loaded since, or was not measured for hours."""
        for target, resident in self._server.versions.residents.items():
            measured, at_s = self._measured.get(target, (None, 0.0))
            if measured is resident and is_within(self._clock(), at_s, _GENERAL_EVERY_S):
                continue
            self._measured[target] = resident, self._clock()
            probes = await self._probes_of(target)
            if probes is not None and probes.general is not None:
                await self._measure(target, probes.general.token_ids)
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
            logger.info("The general text of %s: %s", target, error)
            return
        nll = -sum(logprobs) / len(logprobs)
        self._server.metrics.quality.general_measured(target, nll)
        score = GeneralScore(self._clock(), target.name, target.version, nll)
        await asyncio.to_thread(self._store.add_general_score, score)

    def _forget_all_but(self, ranked: Iterable[tuple[Target, ...]]) -> None:
        """Drop what is no longer resident, or no longer beside another; a new trial asks everything anew."""
        wanted = set(ranked)
        known = {target for targets in wanted for target in targets}
        self._quizzes = {targets: quiz for targets, quiz in self._quizzes.items() if targets in wanted}
        self._probes = {target: probes for target, probes in self._probes.items() if target in known}
        self._measured = {target: seen for target, seen in self._measured.items() if target in known}


async def _all_of(work: Iterable[Coroutine[Any, Any, float]]) -> tuple[float, ...]:
    """All results, once the last one is there; then the first error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return tuple(result for result in results if not isinstance(result, BaseException))


def _body(
    target: Target,
    probe: HeldOutQuestion,
    probes: ProbeSet,
    defaults: RequestDefaults | None,
    fill_defaults: FillDefaults,
) -> dict[str, Any]:
    """The question, with all else left to the version; what that has no default for, the set has."""
    own = defaults or RequestDefaults()
    messages = [turn.model_dump() for turn in probe.messages if turn.role != "system" or own.system is None]
    body = {"model": str(target), "messages": messages, "priority": BACKGROUND_PRIORITY}
    asked = RequestDefaults(temperature=0.0, max_tokens=probes.max_tokens, stop=probes.stop)
    asked = RequestDefaults.model_validate(asked.given | own.given)
    return fill_defaults(body, asked)
