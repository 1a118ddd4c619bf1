"""What counts as evidence on a canary, and what follows from the verdict on it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from adapters.manifest import QualityRules
from adapters.reference import Target
from adapters.store import AdapterStore
from adapters.traffic import Split
from config.monitor import VerdictMode
from quality.verdict import Observation, decide, pair_in_time
from serve.metrics import ServeMetrics
from serve.monitor.controller import Controller, figures_of, policy_of
from serve.monitor.evidence import MIN_TTFTS, PairedStream, TrialEvidence, failure_of, ttft_of
from serve.records import RequestContext, RequestOutcome, RequestRecord
from tests.generations import generation
from tests.peft_folders import draft_for, write_peft_folder

FIRST, SECOND, THIRD = (Target("medical", version) for version in (1, 2, 3))
BEGAN = datetime(2026, 11, 22, 9, tzinfo=UTC)
RULES = QualityRules(margin=0.3, max_error_increase=0.3, max_slow_increase=0.3, min_pairs=5, max_hours=2)
ENOUGH = 60
"""Pairs after which nothing is open under these rules."""


def request(
    target: Target = FIRST,
    outcome: RequestOutcome = "ok",
    reason: str | None = None,
    *,
    status: int = 200,
    ttft_s: float | None = 0.1,
    is_cold: bool = False,
    **changes: Any,
) -> RequestRecord:
    """A client's request, with its generation unless `ttft_s` is None."""
    context = RequestContext("acme", "r-1", is_cold=is_cold)
    if ttft_s is not None:
        context.generation = generation(str(target), ttft_s=ttft_s, **changes)
    return RequestRecord(context, "chat/completions", str(target), outcome, status, reason, 1.0)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param(request(), 0.0, id="an answer"),
        pytest.param(request(outcome="cancelled", status=499), None, id="the client left"),
        pytest.param(request(outcome="client_error", reason="invalid_request_error", status=400), None, id="wrong"),
        pytest.param(
            request(outcome="client_error", reason="queue_full", status=429, ttft_s=None), None, id="too many"
        ),
        pytest.param(request(outcome="server_error", reason="not_ready", status=503), None, id="the engine died"),
        pytest.param(
            request(outcome="server_error", reason="deadline_exceeded", status=504, ttft_s=None), None, id="never begun"
        ),
        pytest.param(request(outcome="server_error", reason="deadline_exceeded", status=504), 1.0, id="never ended"),
        pytest.param(request(outcome="server_error", reason="server_error", status=500), 1.0, id="vLLM failed"),
        pytest.param(
            request(outcome="client_error", reason="adapter_refused", status=422, ttft_s=None), 1.0, id="refused"
        ),
    ],
)
def test_only_what_the_version_did_counts_as_its_failure(record: RequestRecord, expected: float | None) -> None:
    assert failure_of(record) == expected


def test_a_stream_that_ended_in_an_error_event_is_a_failure_without_a_ttft() -> None:
    record = request()
    record.context.generation = generation("medical@1", outcome="error")
    assert (failure_of(record), ttft_of(record)) == (1.0, None)


def test_a_request_that_waited_for_a_load_says_nothing_of_the_versions_speed() -> None:
    assert ttft_of(request(ttft_s=9.0)) == 9.0
    assert ttft_of(request(ttft_s=9.0, is_cold=True)) is None


SEEN = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0])), max_size=200)


@given(SEEN)
@settings(max_examples=200, deadline=None)
def test_a_stream_forms_the_pairs_that_the_verdict_would_form_of_everything(seen: list[tuple[bool, float]]) -> None:
    stream = PairedStream()
    for is_canary, value in seen:
        (stream.canary_seen if is_canary else stream.stable_seen)(value)
    stable, canary = (
        [Observation(float(at), v) for at, (c, v) in enumerate(seen) if c is side] for side in (False, True)
    )
    assert stream.pairs == pair_in_time(stable, canary)
    assert pair_in_time(stream.observations(0), stream.observations(1)) == stream.pairs


@given(SEEN)
@settings(max_examples=100, deadline=None)
def test_a_streams_memory_is_bounded(seen: list[tuple[bool, float]]) -> None:
    stream = PairedStream(most_unused=3, most_pairs=10)
    for is_canary, value in seen:
        (stream.canary_seen if is_canary else stream.stable_seen)(value)
    assert len(stream.pairs) <= 10
    assert set(stream.pairs) <= {(a, b) for a in (0.0, 0.5, 1.0) for b in (0.0, 0.5, 1.0)}


RECORDS = st.lists(
    st.builds(
        request,
        st.sampled_from([FIRST, SECOND, THIRD]),
        st.sampled_from(["ok", "cancelled", "client_error", "server_error"]),
        st.sampled_from([None, "server_error", "not_ready", "adapter_refused", "requests"]),
        ttft_s=st.one_of(st.none(), st.floats(0, 100)),
        is_cold=st.booleans(),
    ),
    max_size=150,
)


@given(RECORDS, st.lists(st.floats(0, 10), max_size=40))
@settings(max_examples=100, deadline=None)
def test_whatever_requests_come_the_evidence_can_be_judged(records: list[RequestRecord], before: list[float]) -> None:
    evidence = TrialEvidence(FIRST, SECOND, before)
    for record in records:
        evidence.request_finished(record)
    stable, canary = evidence.evidence()
    verdict = decide(stable, canary, policy_of(RULES))
    assert evidence.num_pairs == sum(comparison.num_pairs for comparison in verdict.comparisons)
    assert len(stable.errors) == len(canary.errors) <= sum(r.served_name == str(SECOND) for r in records)


def test_slow_is_what_stable_was_not_before_the_canary() -> None:
    evidence = TrialEvidence(FIRST, SECOND, [0.01 * number for number in range(100)])
    assert evidence.slow_threshold_s == pytest.approx(0.94)
    for ttft_s in (0.5, 0.93, 0.95):
        evidence.request_finished(request(FIRST, ttft_s=ttft_s))
        evidence.request_finished(request(SECOND, ttft_s=2 * ttft_s))
    stable, canary = evidence.evidence()
    assert [seen.value for seen in stable.slow] == [0.0, 0.0, 1.0]
    assert [seen.value for seen in canary.slow] == [1.0, 1.0, 1.0]


def test_where_stable_had_no_traffic_before_its_first_requests_fix_the_threshold_and_nothing_else() -> None:
    evidence = TrialEvidence(FIRST, SECOND)
    for _ in range(MIN_TTFTS):
        assert evidence.slow_threshold_s is None
        evidence.request_finished(request(SECOND, ttft_s=5.0))
        evidence.request_finished(request(FIRST, ttft_s=0.1))
    assert evidence.slow_threshold_s == 0.1
    assert evidence.evidence()[1].slow == ()
    evidence.request_finished(request(FIRST, ttft_s=0.1))
    evidence.request_finished(request(SECOND, ttft_s=5.0))
    assert [seen.value for seen in evidence.evidence()[1].slow] == [1.0]


def test_a_shadows_copy_counts_for_errors_only() -> None:
    evidence = TrialEvidence(FIRST, SECOND, [0.1] * MIN_TTFTS)
    for outcome in ("ok", "error", "cancelled"):
        evidence.request_finished(request(FIRST))
        evidence.generation_finished(generation("medical@2", source="shadow", tenant=None, outcome=outcome))
    evidence.generation_finished(generation("medical@2", source="probe", tenant=None))
    evidence.generation_finished(generation("medical@2", source="client"))  # `request_finished` has it
    canary = evidence.evidence()[1]
    assert [seen.value for seen in canary.errors] == [0.0, 1.0]
    assert canary.slow == ()


@dataclass
class Court:
    """A controller over a real store, and a clock that is set by hand."""

    store: AdapterStore
    metrics: ServeMetrics
    controller: Controller
    now: list[datetime]

    async def see(self, num: int, **canary: Any) -> None:
        """Requests and probes by turns; `canary` changes what the canary does (`score`, `outcome`, `ttft_s`...)."""
        await self.controller.judge("medical")
        score = canary.pop("score", 1.0)
        for _ in range(num):
            self.controller.request_finished(request(FIRST))
            self.controller.request_finished(request(SECOND, **canary))
            self.controller.probe_scored(FIRST, SECOND, (1.0, score))

    async def judge(self) -> str | None:
        verdict = await self.controller.judge("medical")
        return verdict.action if verdict else None

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.history("medical")][-2:]

    def told(self, action: str, version: int = 2) -> float | None:
        labels = {"adapter": "medical", "version": str(version), "action": action}
        return self.metrics.registry.get_sample_value("lorikeet_verdicts_total", labels)


class Residents:
    """A residency of one adapter, as far as the controller asks."""

    @property
    def residents(self) -> dict[Target, None]:
        return {FIRST: None}


def make_court(store: AdapterStore, now: list[datetime], mode: VerdictMode = "act", **changes: Any) -> Court:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    clock = lambda: now[0].timestamp()  # noqa: E731 - as an argument
    controller = Controller(
        store,
        Residents(),
        metrics,
        interval_s=0.01,
        mode=mode,
        clock=clock,
        **changes,  # type: ignore[arg-type]
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


@pytest.mark.anyio
async def test_a_dry_run_after_a_restart_does_not_repeat_itself(trial_store: AdapterStore, now: list[datetime]) -> None:
    for _ in range(2):
        court = make_court(trial_store, now, "dry_run")
        await court.see(ENOUGH)
        assert await court.judge() == "promote"
    assert [event.kind for event in trial_store.history("medical")].count("judged") == 1


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
    assert event.reason.startswith("nothing is proven after 2 h: canary score 1.000 may or may not be")
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
    await court.controller._conclude(case, decide(stable, canary, case.policy))  # judged before, concluded after
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
        court.controller.probe_scored(FIRST, target, (1.0, 0.0))
    court.controller.request_finished(RequestRecord(RequestContext("a", "r"), "x", None, "client_error", 404, None, 0))
    assert court.controller._cases["medical"].evidence.num_pairs == 0


@pytest.mark.anyio
async def test_what_stable_was_like_before_the_canary_is_remembered(court: Court) -> None:
    court.store.set_aliases("medical", {"canary": 1})
    for _ in range(MIN_TTFTS):
        court.controller.request_finished(request(FIRST, ttft_s=0.3))
    court.store.set_aliases("medical", {"canary": 2})
    await court.controller.judge("medical")
    assert court.controller._cases["medical"].evidence.slow_threshold_s == 0.3


@pytest.mark.anyio
async def test_the_evidence_is_exported_by_comparison(court: Court) -> None:
    await court.see(3, score=0.0)
    await court.judge()
    labels = {"adapter": "medical", "version": "2", "comparison": "score"}
    registry = court.metrics.registry
    assert registry.get_sample_value("lorikeet_trial_pairs", labels) == 3
    assert registry.get_sample_value("lorikeet_trial_difference", labels) == -1.0


def test_figures_have_a_name_for_each_comparison_and_field() -> None:
    stable, canary = TrialEvidence(FIRST, SECOND).evidence()
    figures = figures_of(decide(stable, canary, policy_of(RULES)))
    assert set(figures) == {
        f"{comparison}_{name}"
        for comparison in ("score", "error_rate", "slow_share")
        for name in ("pairs", "stable", "canary", "ci_low", "ci_high")
    }
