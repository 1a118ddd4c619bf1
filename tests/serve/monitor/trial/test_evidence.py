"""What counts as evidence on a canary, and how it is paired with stable's."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.users import MAX_REQUESTS, MAX_WAIT_S
from quality.verdict import Observation, decide, pair_in_time
from serve.monitor.trial.evidence import (
    MIN_TTFTS,
    ObservedPair,
    PairedStream,
    TrialEvidence,
    failure_of,
    ttft_of,
)
from serve.records import AnsweredRequest
from tests.examples import at_most
from tests.generations import generation
from tests.trial_requests import FIRST, RULES, SECOND, THIRD, request


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
def test_only_what_the_version_did_counts_as_its_failure(record: AnsweredRequest, expected: float | None) -> None:
    assert failure_of(record) == expected


def test_a_stream_that_ended_in_an_error_event_is_a_failure_without_a_ttft() -> None:
    record = replace(request(), generation=generation("medical@1", outcome="error"))
    assert (failure_of(record), ttft_of(record)) == (1.0, None)


def test_a_dead_engine_is_no_failure_of_a_version() -> None:
    lost = generation("medical@1", outcome="lost")
    record = replace(request(outcome="server_error", reason="not_ready", status=503), generation=lost)
    streamed = replace(request(), generation=lost)
    assert (failure_of(record), failure_of(streamed), ttft_of(streamed)) == (None, 0.0, None)


def test_nor_of_a_canary_in_shadow_mode() -> None:
    evidence = TrialEvidence(FIRST, SECOND)
    evidence.request_finished(request(FIRST), 0.0)
    evidence.generation_finished(generation("medical@2", source="shadow", tenant=None, outcome="lost"))
    assert evidence.evidence()[1].errors == ()


def test_a_request_that_waited_for_a_load_says_nothing_of_the_versions_speed() -> None:
    assert ttft_of(request(ttft_s=9.0)) == 9.0
    assert ttft_of(request(ttft_s=9.0, is_cold=True)) is None


SEEN = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0])), max_size=200)


@pytest.mark.slow
@given(SEEN)
@at_most(200)
def test_a_stream_forms_the_pairs_that_the_verdict_would_form_of_everything(seen: list[tuple[bool, float]]) -> None:
    stream: PairedStream[float] = PairedStream()
    for is_canary, value in seen:
        (stream.canary_seen if is_canary else stream.stable_seen)(value)
    stable, canary = (
        [Observation(float(at), v) for at, (c, v) in enumerate(seen) if c is side] for side in (False, True)
    )
    assert stream.pairs == pair_in_time(stable, canary)


@given(SEEN)
@at_most(100)
def test_a_streams_memory_is_bounded(seen: list[tuple[bool, float]]) -> None:
    stream: PairedStream[float] = PairedStream(most_unused=3, most_pairs=10)
    for is_canary, value in seen:
        (stream.canary_seen if is_canary else stream.stable_seen)(value)
    assert len(stream.pairs) <= 10
    assert max(map(len, stream.unused)) <= 3
    assert set(stream.pairs) <= {(a, b) for a in (0.0, 0.5, 1.0) for b in (0.0, 0.5, 1.0)}


RECORDS = st.lists(
    st.builds(
        request,
        st.sampled_from([FIRST, SECOND, THIRD]),
        st.sampled_from(["ok", "cancelled", "client_error", "server_error"]),
        st.sampled_from([None, "server_error", "not_ready", "adapter_refused", "requests"]),
        ttft_s=st.one_of(st.none(), st.floats(0, 100)),
        is_cold=st.booleans(),
        user=st.sampled_from([None, "ada", "bob"]),
    ),
    max_size=150,
)


@pytest.mark.slow
@given(RECORDS, st.lists(st.floats(0, 10), max_size=40))
@at_most(100)
def test_whatever_requests_come_the_evidence_can_be_judged(records: list[AnsweredRequest], before: list[float]) -> None:
    evidence = TrialEvidence(FIRST, SECOND, before)
    for number, record in enumerate(records):
        evidence.request_finished(record, 30.0 * number)
    stable, canary = evidence.evidence()
    verdict = decide(stable, canary, RULES)
    assert len(evidence.take_new()) >= sum(comparison.num_pairs for comparison in verdict.comparisons)
    assert len(canary.errors) <= sum(r.served_name == str(SECOND) for r in records)
    for seen in (stable.errors, stable.slow, canary.errors, canary.slow):
        assert len({one.user for one in seen}) == len(seen)


def test_slow_is_what_stable_was_not_before_the_canary() -> None:
    evidence = TrialEvidence(FIRST, SECOND, [0.01 * number for number in range(100)])
    assert evidence.slow_threshold_s == pytest.approx(0.94)
    for ttft_s in (0.5, 0.93, 0.95):
        evidence.request_finished(request(FIRST, ttft_s=ttft_s), 0.0)
        evidence.request_finished(request(SECOND, ttft_s=2 * ttft_s), 0.0)
    stable, canary = evidence.evidence()
    assert [seen.value for seen in stable.slow] == [0.0, 0.0, 1.0]
    assert [seen.value for seen in canary.slow] == [1.0, 1.0, 1.0]


def test_where_stable_had_no_traffic_before_its_first_requests_fix_the_threshold_and_nothing_else() -> None:
    evidence = TrialEvidence(FIRST, SECOND)
    for _ in range(MIN_TTFTS):
        assert evidence.slow_threshold_s is None
        evidence.request_finished(request(SECOND, ttft_s=5.0), 0.0)
        evidence.request_finished(request(FIRST, ttft_s=0.1), 0.0)
    assert evidence.slow_threshold_s == 0.1
    assert evidence.evidence()[1].slow == ()
    evidence.request_finished(request(FIRST, ttft_s=0.1), 0.0)
    evidence.request_finished(request(SECOND, ttft_s=5.0), 0.0)
    assert [seen.value for seen in evidence.evidence()[1].slow] == [1.0]


def paired(evidence: TrialEvidence) -> list[tuple[int, float, float]]:
    """What decides: pairs and their means; who has no partner yet is not written down."""
    comparisons = decide(*evidence.evidence(), RULES).comparisons
    return [(one.num_pairs, one.stable, one.canary) for one in comparisons]


@pytest.mark.slow
@given(RECORDS, st.integers(0, 150), st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0])), max_size=20))
@at_most(100)
def test_evidence_that_is_written_down_can_be_taken_up_again(
    records: list[AnsweredRequest], cut: int, scores: list[tuple[int, float]]
) -> None:
    before = TrialEvidence(FIRST, SECOND, [0.1] * MIN_TTFTS)
    kept: list[ObservedPair] = []
    for number, record in enumerate(records):
        before.request_finished(record, float(number))
        if number == cut:
            kept += before.take_new()
    for question, score in dict(scores).items():
        before.question_scored(question, 1.0, score)
    kept += before.take_new()
    again = TrialEvidence(FIRST, SECOND, known=kept)
    assert paired(again) == paired(before)
    assert again.slow_threshold_s == before.slow_threshold_s == 0.1
    assert again.questions == before.questions == {question for question, _ in scores}
    assert again.take_new() == before.take_new() == []


def test_a_question_that_two_servers_asked_of_one_trial_counts_once() -> None:
    known = [ObservedPair("score", 1.0, 0.0, 3), ObservedPair("score", 1.0, 1.0, 3), ObservedPair("score", 1.0, 1.0, 4)]
    stable, canary = TrialEvidence(FIRST, SECOND, known=known).evidence()
    assert [seen.value for seen in canary.scores] == [0.0, 1.0]
    assert len(stable.scores) == 2


def test_a_shadows_copy_counts_for_errors_only() -> None:
    evidence = TrialEvidence(FIRST, SECOND, [0.1] * MIN_TTFTS)
    for outcome in ("ok", "error", "cancelled"):
        evidence.request_finished(request(FIRST, user="ada"), 0.0)
        evidence.generation_finished(generation("medical@2", source="shadow", tenant=None, outcome=outcome))
    evidence.generation_finished(generation("medical@2", source="monitor", tenant=None))
    evidence.generation_finished(generation("medical@2", source="client"))  # `request_finished` has it
    canary = evidence.evidence()[1]
    assert [seen.value for seen in canary.errors] == [0.0, 1.0]
    assert canary.slow == ()


def values(seen: tuple[Observation, ...]) -> list[tuple[float, int]]:
    return [(one.value, one.num_requests) for one in seen]


def test_a_user_counts_once_with_the_mean_of_the_first_requests() -> None:
    evidence = TrialEvidence(FIRST, SECOND)
    for number in range(3 * MAX_REQUESTS):
        failed = number % 4 == 0 or number >= MAX_REQUESTS
        reason = "server_error" if failed else None
        evidence.request_finished(request(SECOND, "server_error" if failed else "ok", reason, user="ada"), 0.0)
    assert values(evidence.evidence()[1].errors) == [(0.25, MAX_REQUESTS)]


def test_a_user_who_sends_less_counts_once_the_time_is_up() -> None:
    evidence = TrialEvidence(FIRST, SECOND)
    for at_s in (0.0, 1.0, 2.0):
        evidence.request_finished(request(SECOND, user="ada"), at_s)
    evidence.close_due(MAX_WAIT_S - 1)
    assert evidence.evidence()[1].errors == ()
    evidence.close_due(MAX_WAIT_S)
    assert values(evidence.evidence()[1].errors) == [(0.0, 3)]


def test_a_user_whom_a_raised_weight_moved_counts_for_the_first_version() -> None:
    evidence = TrialEvidence(FIRST, SECOND)
    for target in (FIRST, SECOND):
        for _ in range(MAX_REQUESTS):
            evidence.request_finished(request(target, user="ada"), 0.0)
    assert [values(side.errors) for side in evidence.evidence()] == [[(0.0, MAX_REQUESTS)], []]


def test_requests_that_name_a_version_are_no_draw_and_count_for_nothing() -> None:
    evidence = TrialEvidence(FIRST, SECOND)
    record = request(SECOND, "server_error", "server_error", status=500)
    record.context.sticky_key = None
    evidence.request_finished(record, 0.0)
    assert evidence.num_seen == 0


def test_a_users_name_is_not_written_down() -> None:
    evidence = TrialEvidence(FIRST, SECOND, user_key=b"secret")
    evidence.request_finished(request(FIRST), 0.0)
    evidence.request_finished(request(SECOND), 0.0)
    (pair,) = evidence.take_new()
    assert pair.stable_user is not None
    assert len(pair.stable_user) == 16
    assert not pair.stable_user.startswith("r-")


def test_pairs_that_an_older_server_wrote_without_users_count_for_nothing() -> None:
    known = [ObservedPair("error", 0.0, 1.0)] * 50 + [ObservedPair("slow", 0.0, 1.0)] * 50
    assert TrialEvidence(FIRST, SECOND, known=known).evidence() == TrialEvidence(FIRST, SECOND).evidence()


def test_a_user_that_two_servers_counted_counts_once() -> None:
    known = [
        ObservedPair("error", 0.0, 1.0, None, "ada", "bob", 20),
        ObservedPair("error", 0.0, 1.0, None, "eve", "bob", 20),
        ObservedPair("error", 0.0, 0.0, None, "eve", "kim", 20),
        ObservedPair("error", 0.0, 1.0, None, "kim", "leo", 20),
    ]
    assert values(TrialEvidence(FIRST, SECOND, known=known).evidence()[1].errors) == [(1.0, 20), (0.0, 20)]
