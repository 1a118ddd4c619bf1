"""The trial controller: gathers evidence on each canary, asks for the verdict, and moves the alias.

Evidence belongs to one trial: when stable or canary changes, it starts from nothing. It is written to the quality store
with each verdict, so that a server that starts anew goes on where it was: else a canary would get a second chance of
being lucky with each restart. Nothing here decides; `quality.verdict.decide` does.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from adapters.errors import AdapterError, TrialOverError
from adapters.reference import Target
from adapters.release.trials import Trial, reported_verdicts
from adapters.store.history import VerdictAction
from adapters.store.manifest import QualityRules
from adapters.store.store import AdapterStore
from config.monitor import VerdictMode
from quality.errors import QualityStoreError
from quality.samples.records import TrialPair
from quality.samples.store import QualityStore
from quality.verdict import Comparison, Verdict, decide
from serve.clock import steady_time
from serve.monitor.protocol import LoadedVersions, MonitorMetrics
from serve.monitor.trial.evidence import TrialEvidence, known_pairs, ttft_of
from serve.monitor.trial.state import TrialState, trial_state
from serve.records import AnsweredRequest, EvaluationResult, GenerationRecord, Source

logger = logging.getLogger(__name__)

_MAX_TTFTS = 500
_MAX_VERSIONS = 256
_WORDS: dict[VerdictAction, str] = {"promote": "promoted", "rollback": "rolled back", "hold": "held"}


@dataclass
class Case:
    """One trial under way. `reported` are the verdicts that the history has already."""

    name: str
    trial: Trial
    evidence: TrialEvidence
    rules: QualityRules
    reported: set[VerdictAction]
    num_judged: int = -1
    """How much the last verdict saw."""
    verdict: Verdict | None = None
    """The last one."""

    @property
    def canary(self) -> Target:
        return Target(self.name, self.trial.canary)


class Controller:
    """An observer of requests, generations and held-out scores, and the loop that judges what they show.

    Args:
        kept: Where evidence is written down.
        user_key: What users' names are hashed with there.
        interval_s: Time between two verdicts.
        mode: "dry_run" tells what "act" would do.
        has_history: False where the histories belong to another store: then verdicts are logged and counted only.
    """

    def __init__(
        self,
        store: AdapterStore,
        versions: LoadedVersions,
        metrics: MonitorMetrics,
        kept: QualityStore,
        *,
        interval_s: float,
        mode: VerdictMode,
        has_history: bool = True,
        user_key: bytes = b"",
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._store = store
        self._versions = versions
        self._metrics = metrics
        self._kept = kept
        self._interval_s = interval_s
        self._does_act = mode == "act" and has_history
        self._has_history = has_history
        self._user_key = user_key
        self._clock = clock
        self._cases: dict[str, Case] = {}
        self._ttfts: OrderedDict[str, deque[float]] = OrderedDict()

    def request_finished(self, record: AnsweredRequest) -> None:
        """Count a client's request."""
        name = record.served_name
        if name is None:
            return
        if (ttft_s := ttft_of(record)) is not None:
            self._remember_ttft(name, ttft_s)
        if (case := self._cases.get(name.partition("@")[0])) is not None:
            case.evidence.request_finished(record, self._clock())

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        """No action is needed."""

    def generation_finished(self, record: GenerationRecord) -> None:
        """Count a copy that a canary in shadow mode was shown."""
        if (case := self._cases.get((record.lora_name or "").partition("@")[0])) is not None:
            case.evidence.generation_finished(record)

    def questions_counted(self, name: str, trial: Trial) -> Collection[int] | None:
        """The held-out questions that this trial needs no more; None while it is not followed yet."""
        case = self._cases.get(name)
        return frozenset(case.evidence.questions) if case is not None and case.trial == trial else None

    def question_scored(self, name: str, trial: Trial, question: int, scores: tuple[float, float]) -> None:
        """Count a held-out question that both versions of a trial were asked."""
        case = self._cases.get(name)
        if case is not None and case.trial == trial:
            case.evidence.question_scored(question, *scores)

    def trials(self) -> list[TrialState]:
        """The trials under way that have been judged, with the last verdict on each."""
        cases = [case for _, case in sorted(self._cases.items())]
        return [trial_state(case.name, case.trial, case.verdict) for case in cases if case.verdict is not None]

    async def run(self) -> None:
        """Judge until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            for name in sorted({target.name for target in self._versions.residents} | set(self._cases)):
                try:
                    await self.judge(name)
                except (AdapterError, OSError) as error:  # boundary of a loop: of this adapter, for now
                    logger.warning("Cannot judge the canary of %s now: %s", name, error)
                except Exception as error:  # boundary of a loop: the others must be judged all the same
                    self._metrics.failures.note("controller", error, f"Judging the canary of {name} failed")

    async def judge(self, name: str) -> Verdict | None:
        """Judge one adapter's trial; None if there is no new evidence.

        Raises:
            AdapterError: Its history or a manifest cannot be read, or the store cannot be written.
        """
        case = await self._follow(name)
        if case is None:
            return None
        is_late = self._is_late(case)
        case.evidence.close_due(self._clock())
        num_seen = case.evidence.num_seen
        if num_seen == case.num_judged and not is_late:
            return None
        await self._write_down(case)
        stable, canary = case.evidence.evidence()
        verdict = await asyncio.to_thread(decide, stable, canary, case.rules)
        case.num_judged, case.verdict = num_seen, verdict
        self._metrics.quality.trial_judged(case.canary, verdict)
        if verdict.action != "hold" or is_late:
            await self._conclude(case, verdict)
        return verdict

    async def _follow(self, name: str) -> Case | None:
        """The trial that is under way now; another one than before starts without evidence."""
        trial = await asyncio.to_thread(self._store.trial, name)
        case = self._cases.get(name)
        if case is not None and case.trial != trial:
            self._metrics.quality.trial_over(self._cases.pop(name).canary)
            case = None
        if trial is not None and case is None:
            case = self._cases[name] = await self._begin(name, trial)
        return case

    async def _begin(self, name: str, trial: Trial) -> Case:
        stable, canary = Target(name, trial.stable), Target(name, trial.canary)
        rules = await asyncio.to_thread(self._rules, stable)
        reported = await asyncio.to_thread(lambda: reported_verdicts(self._store.history(name), trial))
        known = await asyncio.to_thread(self._kept.trial_pairs, name, trial.stable, trial.canary, trial.began_at)
        ttfts_s = tuple(self._ttfts.get(str(stable), ()))
        evidence = TrialEvidence(stable, canary, ttfts_s, known_pairs(known), self._user_key)
        logger.info("Trial started: %s against %s", canary, stable)
        return Case(name, trial, evidence, rules, set(reported))

    async def _write_down(self, case: Case) -> None:
        """Store the new evidence; a failed write is retried with the next verdict."""
        pairs, trial, at_s = case.evidence.take_new(), case.trial, self._clock()
        if not pairs:
            return
        rows = [TrialPair(at_s, case.name, trial.stable, trial.canary, trial.began_at, *one) for one in pairs]
        try:
            await asyncio.to_thread(self._kept.add_trial_pairs, rows)
        except QualityStoreError as error:
            case.evidence.give_back(pairs)
            logger.warning("%d observations of %s are not stored yet: %s", len(rows), case.canary, error)

    def _rules(self, stable: Target) -> QualityRules:
        """Stable's rules judge its canary: a canary does not bring its own."""
        return self._store.manifest(stable).quality or QualityRules()

    def _is_late(self, case: Case) -> bool:
        """Whether the trial exceeded its time and this was not reported yet."""
        hours = (self._clock() - case.trial.began_s) / 3600
        return hours > case.rules.max_hours and not case.reported

    async def _conclude(self, case: Case, verdict: Verdict) -> None:
        action, figures = verdict.action, figures_of(verdict)
        reason = verdict.reason
        if action == "hold":
            reason = f"no verdict after {case.rules.max_hours:g} h: {reason}"
        if action in case.reported and (action == "hold" or not self._does_act):
            return
        try:
            if self._does_act and action != "hold":
                await asyncio.to_thread(self._store.conclude, case.name, case.trial, action, reason, figures)
                self._cases.pop(case.name, None)
                self._metrics.quality.trial_over(case.canary)
            elif self._has_history:
                await asyncio.to_thread(self._store.record_verdict, case.name, case.trial, action, reason, figures)
        except TrialOverError as error:
            logger.info("%s", error)
            return
        case.reported.add(action)
        self._metrics.quality.verdict_told(case.canary, action)
        self._metrics.evaluated.tell(
            EvaluationResult("canary_verdict", str(case.canary), _score_difference(verdict), action, reason)
        )
        tense = "is" if self._does_act or action == "hold" else "would be"
        logger.warning("%s %s %s: %s", case.canary, tense, _WORDS[action], reason)

    def _remember_ttft(self, name: str, ttft_s: float) -> None:
        if name not in self._ttfts:
            self._ttfts[name] = deque(maxlen=_MAX_TTFTS)
            if len(self._ttfts) > _MAX_VERSIONS:
                self._ttfts.popitem(last=False)
        self._ttfts[name].append(ttft_s)
        self._ttfts.move_to_end(name)


def _score_difference(verdict: Verdict) -> float | None:
    """The canary's mean score minus stable's; None where no question was asked of both."""
    score = next(comparison for comparison in verdict.comparisons if comparison.name == "score")
    return score.canary - score.stable if score.num_pairs else None


def figures_of(verdict: Verdict) -> dict[str, float]:
    """The comparisons as plain numbers: `score_pairs`, `error_rate_canary`, `slow_share_canary_users`..."""
    return {
        f"{comparison.name.replace(' ', '_')}_{name}": round(value, 6)
        for comparison in verdict.comparisons
        for name, value in _figures(comparison)
    }


def _figures(comparison: Comparison) -> list[tuple[str, float]]:
    figures = [
        ("pairs", float(comparison.num_pairs)),
        ("stable", comparison.stable),
        ("canary", comparison.canary),
        ("ci_low", comparison.ci_low),
        ("ci_high", comparison.ci_high),
    ]
    if (users := comparison.users) is not None:
        figures += [("stable_users", float(users.stable)), ("canary_users", float(users.canary))]
    return figures
