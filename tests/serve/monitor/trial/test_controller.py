"""What follows from the verdict on a canary: its aliases, its history, its metrics."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from adapters.reference import Target
from adapters.release.traffic import Split
from adapters.release.trials import Trial
from adapters.store.manifest import QualityRules
from adapters.store.store import AdapterStore
from config.monitor import VerdictMode
from quality.samples.store import QualityStore
from quality.verdict import decide
from serve.monitor.trial.controller import Controller, figures_of
from serve.monitor.trial.evidence import MIN_TTFTS, TrialEvidence
from serve.observe.metrics import ServeMetrics
from serve.records import AnsweredRequest, EvaluationResult, RequestContext
from serve.residency.residency import Residency
from tests.peft_folders import draft_for, write_peft_folder
from tests.trial_requests import FIRST, RULES, SECOND, THIRD, request

BEGAN = datetime(2026, 11, 22, 9, tzinfo=UTC)
ENOUGH = 60
"""Pairs after which nothing is open under `RULES`."""


@dataclass
class Court:
    """A controller over a real store, and a clock that is set by hand."""

    store: AdapterStore
    metrics: ServeMetrics
    controller: Controller
    now: list[datetime]

    async def see(self, num: int, **canary: Any) -> None:
        """Alternate requests and questions; `canary` changes what the canary does (`score`, `outcome`, `ttft_s`...)."""
        await self.controller.judge("medical")
        score = canary.pop("score", 1.0)
        for question in range(num):
            self.controller.request_finished(request(FIRST))
            self.controller.request_finished(request(SECOND, **canary))
            self.controller.question_scored("medical", self.trial, question, (1.0, score))

    @property
    def trial(self) -> Trial:
        trial = self.store.trial("medical")
        assert trial is not None
        return trial

    async def judge(self) -> str | None:
        verdict = await self.controller.judge("medical")
        return verdict.action if verdict else None

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.history("medical")[-2:]]

    def told(self, action: str, version: int = 2) -> float | None:
        labels = {"adapter": "medical", "version": str(version), "action": action}
        return self.metrics.registry.get_sample_value("lorikeet_verdicts_total", labels)


class Residents:
    """A residency of one adapter, as far as the controller asks."""

    @property
    def residents(self) -> dict[Target, None]:
        return {FIRST: None}


def make_court(
    store: AdapterStore,
    now: list[datetime],
    mode: VerdictMode = "act",
    kept: QualityStore | None = None,
    **changes: Any,
) -> Court:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    clock = lambda: now[0].timestamp()  # noqa: E731 - as an argument
    controller = Controller(
        store,
        cast(Residency, Residents()),
        metrics,
        kept or QualityStore(store.root.parent / "quality.sqlite3"),
        interval_s=0.01,
        mode=mode,
        clock=clock,
        **changes,
    )
    return Court(store, metrics, controller, now)


@pytest.fixture
def now() -> list[datetime]:
    return [BEGAN]


@pytest.fixture
def trial_store(tmp_path: Path, now: list[datetime]) -> AdapterStore:
    """`medical@1` with its rules is stable; `medical@2`, which would forgive itself everything, is its canary."""
    store = AdapterStore(tmp_path / "adapters", clock=lambda: now[0])
    folder = write_peft_folder(tmp_path / "made")
    lenient = QualityRules(margin=0.99, max_error_increase=0.99, max_slow_increase=0.99)
    for rules in (RULES, lenient, lenient):
        store.publish(folder, draft_for(folder, quality=rules))
    store.set_aliases("medical", {"stable": 1, "canary": 2}, canary_weight=0.5)
    return store


@pytest.fixture
def court(trial_store: AdapterStore, now: list[datetime]) -> Court:
    return make_court(trial_store, now)


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_canary_that_does_as_well_is_promoted_with_its_figures(court: Court) -> None:
    await court.see(ENOUGH)
    assert await court.judge() == "promote"
    event = court.store.history("medical")[-1]
    assert (event.kind, event.alias, event.version) == ("promoted", "stable", 2)
    assert event.figures is not None
    assert event.figures["score_pairs"] == ENOUGH
    assert "score 1.000 is less than 0.3 worse than stable's 1.000" in event.reason
    assert court.store.split("medical") == Split()
    assert court.told("promote") == 1
    assert await court.judge() is None  # the trial is over


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("canary", "reason"),
    [
        pytest.param({"score": 0.0}, "canary score 0.000 is more than 0.3 worse", id="wrong answers"),
        pytest.param({"outcome": "server_error", "reason": "server_error"}, "canary error rate 1.000", id="errors"),
        pytest.param({"ttft_s": 9.0}, "canary slow share 1.000", id="slow"),
    ],
)
async def test_a_canary_that_does_worse_is_rolled_back_by_what_is_worse(
    court: Court, canary: dict[str, Any], reason: str
) -> None:
    await court.see(ENOUGH, **canary)
    assert await court.judge() == "rollback"
    event = court.store.history("medical")[-1]
    assert (event.kind, event.alias, event.version, event.previous) == ("rolled_back", "canary", 1, 2)
    assert event.reason.startswith(reason)
    assert court.store.aliases("medical") == {"stable": 1, "canary": 1}
    assert court.told("rollback") == 1


@pytest.mark.anyio
async def test_a_verdict_is_told_with_its_reason(court: Court) -> None:
    told: list[EvaluationResult] = []
    court.metrics.evaluated.listeners.append(told.append)
    await court.see(ENOUGH, score=0.0)
    await court.judge()
    (result,) = told
    assert (result.name, result.lora_name, result.label) == ("canary_verdict", "medical@2", "rollback")
    assert result.score == -1.0
    assert (result.explanation or "").startswith("canary score 0.000 is more than")


@pytest.mark.anyio
async def test_a_dry_run_tells_once_and_moves_nothing(trial_store: AdapterStore, now: list[datetime]) -> None:
    court = make_court(trial_store, now, "dry_run")
    await court.see(ENOUGH)
    assert await court.judge() == "promote"
    await court.see(1)
    assert await court.judge() == "promote"
    assert court.kinds() == ["split", "judged"]
    event = court.store.history("medical")[-1]
    assert (event.version, event.action) == (2, "promote")
    assert court.store.aliases("medical") == {"stable": 1, "canary": 2}
    assert court.told("promote") == 1


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_dry_run_after_a_restart_does_not_repeat_itself(trial_store: AdapterStore, now: list[datetime]) -> None:
    for _ in range(2):
        court = make_court(trial_store, now, "dry_run")
        await court.see(ENOUGH)
        assert await court.judge() == "promote"
    assert [event.kind for event in trial_store.history("medical")].count("judged") == 1


@pytest.mark.slow
@pytest.mark.anyio
async def test_where_the_history_is_another_stores_a_verdict_is_counted_and_nothing_written(
    trial_store: AdapterStore, now: list[datetime]
) -> None:
    court = make_court(trial_store, now, "act", has_history=False)
    before = trial_store.history("medical")
    await court.see(ENOUGH)
    assert await court.judge() == "promote"
    assert trial_store.history("medical") == before
    assert court.told("promote") == 1


@pytest.mark.anyio
async def test_too_little_evidence_holds_and_says_nothing(court: Court) -> None:
    await court.see(3)
    assert await court.judge() == "hold"
    assert court.kinds() == ["promoted", "split"]
    assert court.told("hold") is None


@pytest.mark.anyio
async def test_nothing_new_is_not_judged_again(court: Court) -> None:
    await court.see(3)
    assert [await court.judge(), await court.judge()] == ["hold", None]


@pytest.mark.anyio
async def test_a_canary_that_proves_nothing_in_its_time_is_reported_once_and_stays(court: Court) -> None:
    await court.see(3)
    court.now[0] = BEGAN + timedelta(hours=2, seconds=1)
    assert await court.judge() == "hold"
    court.now[0] += timedelta(hours=1)
    assert await court.judge() is None
    event = court.store.history("medical")[-1]
    assert (event.kind, event.action) == ("judged", "hold")
    assert event.reason.startswith("no verdict after 2 h: canary score 1.000 may or may not be")
    assert court.store.aliases("medical") == {"stable": 1, "canary": 2}
    assert court.told("hold") == 1
    await court.see(ENOUGH)  # and it may still prove itself
    assert await court.judge() == "promote"


@pytest.mark.anyio
@pytest.mark.parametrize("moves", [{"stable": 3}, {"canary": 3}, {"stable": 2}], ids=str)
async def test_an_operators_move_between_evidence_and_verdict_wins(court: Court, moves: dict[str, int]) -> None:
    await court.see(ENOUGH, score=0.0)
    case = court.controller._cases["medical"]
    stable, canary = case.evidence.evidence()
    court.store.set_aliases("medical", moves)
    before = court.store.history("medical")
    await court.controller._conclude(case, decide(stable, canary, case.rules))  # judged before, concluded after
    assert court.store.history("medical") == before
    assert court.told("rollback") is None


@pytest.mark.anyio
async def test_another_canary_starts_without_evidence(court: Court) -> None:
    await court.see(ENOUGH, score=0.0)
    court.store.promote("medical", 3, alias="canary")
    verdict = await court.controller.judge("medical")
    assert verdict is not None
    assert [comparison.num_pairs for comparison in verdict.comparisons] == [0, 0, 0]


@pytest.mark.anyio
async def test_answers_of_versions_that_are_not_on_trial_are_no_evidence(court: Court) -> None:
    await court.controller.judge("medical")
    for target in (THIRD, Target("legal", 2)):
        court.controller.request_finished(request(target))
    court.controller.question_scored("legal", court.trial, 0, (1.0, 0.0))
    court.controller.question_scored("medical", replace(court.trial, canary=3), 0, (1.0, 0.0))
    court.controller.request_finished(
        AnsweredRequest(RequestContext("a", "r"), "x", None, "client_error", 404, None, 0)
    )
    assert court.controller._cases["medical"].evidence.num_seen == 0


@pytest.mark.anyio
async def test_what_stable_was_like_before_the_canary_is_remembered(court: Court) -> None:
    court.store.set_aliases("medical", {"canary": 1})
    for _ in range(MIN_TTFTS):
        court.controller.request_finished(request(FIRST, ttft_s=0.3))
    court.store.set_aliases("medical", {"canary": 2})
    await court.controller.judge("medical")
    assert court.controller._cases["medical"].evidence.slow_threshold_s == 0.3


@pytest.mark.slow
@pytest.mark.anyio
async def test_two_sticky_users_decide_nothing_however_much_they_send(court: Court) -> None:
    await court.controller.judge("medical")
    for _ in range(500):
        court.controller.request_finished(request(FIRST, user="steady"))
        court.controller.request_finished(request(SECOND, "server_error", "server_error", status=500, user="breaks it"))
    verdict = await court.controller.judge("medical")
    assert verdict is not None
    assert verdict.action == "hold"
    assert "too few users: 1 of the canary and 1 of stable" in verdict.reason
    assert "send each person's id as `user`" in verdict.reason


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_user_counts_once_also_after_a_restart(court: Court, now: list[datetime]) -> None:
    for each in (court, *(make_court(court.store, now) for _ in range(3))):
        await each.controller.judge("medical")
        for _ in range(20):
            each.controller.request_finished(request(FIRST, user="ada"))
            each.controller.request_finished(request(SECOND, user="bob"))
        await each.controller.judge("medical")
        assert each.controller.trials()[0].comparisons[1].num_pairs == 1
    with QualityStore(court.store.root.parent / "quality.sqlite3") as kept:
        pairs = kept.trial_pairs("medical", 1, 2, court.trial.began_at)
    assert [pair.kind for pair in pairs].count("error") == 1


@pytest.mark.anyio
async def test_a_user_with_few_requests_counts_after_ten_minutes(court: Court) -> None:
    await court.controller.judge("medical")
    court.controller.request_finished(request(FIRST, user="ada"))
    court.controller.request_finished(request(SECOND, user="bob"))
    assert await court.judge() is None
    court.now[0] += timedelta(seconds=600)
    verdict = await court.controller.judge("medical")
    assert verdict is not None
    assert [comparison.num_pairs for comparison in verdict.comparisons] == [0, 1, 0]


@pytest.mark.slow
@pytest.mark.anyio
async def test_how_a_trial_stands_tells_users_and_reason(court: Court) -> None:
    assert court.controller.trials() == []
    await court.see(3)
    await court.judge()
    (trial,) = court.controller.trials()
    assert (trial.stable, trial.canary, trial.action) == ("medical@1", "medical@2", "hold")
    assert [(one.name, one.canary_users) for one in trial.comparisons] == [
        ("score", None),
        ("error rate", 3),
        ("slow share", 0),
    ]
    assert "too few users: 3 of the canary and 3 of stable" in trial.reason


@pytest.mark.anyio
async def test_the_evidence_is_exported_by_comparison(court: Court) -> None:
    await court.see(3, score=0.0)
    await court.judge()
    labels = {"adapter": "medical", "version": "2", "comparison": "score"}
    registry = court.metrics.registry
    assert registry.get_sample_value("lorikeet_trial_pairs", labels) == 3
    assert registry.get_sample_value("lorikeet_trial_difference", labels) == -1.0
    users = labels | {"comparison": "error rate", "side": "canary"}
    assert registry.get_sample_value("lorikeet_trial_users", users) == 3


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["concluded", "given up"])
async def test_the_figures_of_a_trial_go_when_it_is_over(court: Court, end: str) -> None:
    await court.see(ENOUGH if end == "concluded" else 3)
    await court.judge()
    if end == "given up":
        court.store.set_aliases("medical", {"canary": 1})
        await court.judge()
    labels = {"adapter": "medical", "version": "2", "comparison": "score"}
    assert court.metrics.registry.get_sample_value("lorikeet_trial_pairs", labels) is None


@pytest.mark.anyio
async def test_a_server_that_starts_anew_goes_on_with_the_evidence(court: Court, now: list[datetime]) -> None:
    await court.see(4, score=0.0)
    assert await court.judge() == "hold"  # and so it is written down
    court.controller.question_scored("medical", court.trial, 4, (1.0, 1.0))  # after the last verdict before the crash
    anew = make_court(court.store, now)
    assert anew.controller.questions_counted("medical", court.trial) is None
    verdict = await anew.controller.judge("medical")
    assert verdict is not None
    assert [comparison.num_pairs for comparison in verdict.comparisons] == [4, 4, 0]
    assert verdict.comparisons[0].canary == 0.0
    assert anew.controller.questions_counted("medical", court.trial) == {0, 1, 2, 3}


@pytest.mark.anyio
async def test_another_trial_of_the_same_versions_starts_without_evidence(court: Court, now: list[datetime]) -> None:
    await court.see(4, score=0.0)
    await court.judge()
    court.store.set_aliases("medical", {"canary": 1})
    now[0] += timedelta(hours=1)
    court.store.set_aliases("medical", {"canary": 2})
    verdict = await make_court(court.store, now).controller.judge("medical")
    assert verdict is not None
    assert [comparison.num_pairs for comparison in verdict.comparisons] == [0, 0, 0]


@pytest.mark.anyio
async def test_evidence_that_could_not_be_written_down_is_written_with_the_next_verdict(
    trial_store: AdapterStore, now: list[datetime], tmp_path: Path
) -> None:
    kept = QualityStore(tmp_path / "failing.sqlite3")
    court = make_court(trial_store, now, kept=kept)
    await court.controller.judge("medical")
    kept._connection.execute("ALTER TABLE trial_pairs RENAME TO away")
    await court.see(2)
    await court.judge()
    kept._connection.execute("ALTER TABLE away RENAME TO trial_pairs")
    await court.see(1)
    await court.judge()
    trial = court.trial
    pairs = kept.trial_pairs("medical", trial.stable, trial.canary, trial.began_at)
    assert [pair.kind for pair in pairs].count("error") == 3


@pytest.mark.anyio
async def test_a_quality_store_that_fails_does_not_keep_a_canary_from_being_judged(
    trial_store: AdapterStore, now: list[datetime], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = QualityStore(tmp_path / "failing.sqlite3")
    court = make_court(trial_store, now, kept=kept)
    await court.controller.judge("medical")
    kept._connection.execute("DROP TABLE trial_pairs")
    await court.see(ENOUGH)
    assert await court.judge() == "promote"
    assert "are not stored yet" in caplog.text


def test_figures_have_a_name_for_each_comparison_and_field() -> None:
    stable, canary = TrialEvidence(FIRST, SECOND).evidence()
    figures = figures_of(decide(stable, canary, RULES))
    names = ("pairs", "stable", "canary", "ci_low", "ci_high")
    users = ("stable_users", "canary_users")
    by_user = {f"{comparison}_{name}" for comparison in ("error_rate", "slow_share") for name in (*names, *users)}
    assert set(figures) == {f"score_{name}" for name in names} | by_user
