"""What counts as evidence on a canary, and how it is paired with stable's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.verdict import Observation, decide, pair_in_time
from serve.monitor.controller import policy_of
from serve.monitor.evidence import MIN_TTFTS, Pair, PairedStream, TrialEvidence, failure_of, ttft_of
from serve.records import RequestRecord
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


@given(RECORDS, st.integers(0, 150), st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0])), max_size=20))
@settings(max_examples=100, deadline=None)
def test_evidence_that_is_written_down_can_be_taken_up_again(
    records: list[RequestRecord], cut: int, scores: list[tuple[int, float]]
) -> None:
    before = TrialEvidence(FIRST, SECOND, [0.1] * MIN_TTFTS)
    kept: list[Pair] = []
    for number, record in enumerate(records):
        before.request_finished(record)
        if number == cut:
            kept += before.take_new()
    for probe, score in dict(scores).items():
        before.probe_scored(probe, 1.0, score)
    kept += before.take_new()
    again = TrialEvidence(FIRST, SECOND, known=kept)
    assert again.evidence() == before.evidence()
    assert again.slow_threshold_s == before.slow_threshold_s == 0.1
    assert again.probes == before.probes == {probe for probe, _ in scores}
    assert again.take_new() == before.take_new() == []


def test_a_probe_that_two_servers_asked_of_one_trial_counts_once() -> None:
    known = [Pair("score", 1.0, 0.0, 3), Pair("score", 1.0, 1.0, 3), Pair("score", 1.0, 1.0, 4)]
    stable, canary = TrialEvidence(FIRST, SECOND, known=known).evidence()
    assert [seen.value for seen in canary.scores] == [0.0, 1.0]
    assert len(stable.scores) == 2


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
