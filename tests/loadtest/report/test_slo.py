"""Objectives as an operator writes them, and runs held against them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import SloError
from loadtest.report.slo import Slo, is_good, judge, parse_slo
from tests.runs import random_run, request, run_of


def test_every_objective_can_be_written_with_its_unit() -> None:
    slo = parse_slo("ttft=500ms, itl=100000us, tpot=80ms, e2e=5s, p=95, errors=2%")
    expected = Slo(ttft_s=0.5, itl_s=0.1, tpot_s=0.08, e2e_s=5.0, percentile=95, errors=0.02)
    assert slo.model_dump() == pytest.approx(expected.model_dump())


def test_what_is_left_out_has_its_default() -> None:
    assert parse_slo("e2e=1m") == Slo(e2e_s=60.0, percentile=99, errors=0.01)


def test_a_limit_on_errors_alone_is_an_slo() -> None:
    assert parse_slo("errors=0").errors == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no limit"),
        ("p=99", "names no limit"),
        ("ttft", "'ttft' is not an objective. Write key=value"),
        ("latency=5s", "'latency' is not an objective; known: ttft, itl"),
        ("ttft=500", "'ttft': got '500', wanted a duration above 0 with its unit"),
        ("ttft=0ms", "above 0"),
        ("ttft=-1s", "got '-1s'"),
        ("ttft=1h", "got '1h'"),
        ("ttft=1s,ttft=2s", "'ttft' occurs twice"),
        ("ttft=1s,p=0", "'p': got '0', wanted a percentile above 0"),
        ("ttft=1s,p=101", "at most 100"),
        ("ttft=1s,errors=2", "'errors': got '2', wanted a share"),
        ("ttft=1s,errors=few", "got 'few'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_was_wanted(text: str, message: str) -> None:
    with pytest.raises(SloError, match=message):
        parse_slo(text)


@pytest.mark.slow
@given(
    st.builds(
        Slo,
        ttft_s=st.sampled_from([None, 0.0005, 0.25, 3.0]),
        e2e_s=st.sampled_from([0.5, 12.5]),
        percentile=st.sampled_from([50.0, 99.9]),
        errors=st.sampled_from([0.0, 0.015]),
    )
)
def test_an_slo_reads_what_it_writes(slo: Slo) -> None:
    assert parse_slo(str(slo)).model_dump() == pytest.approx(slo.model_dump())


def test_a_run_within_every_limit_meets_its_slo() -> None:
    verdict = judge(run_of(request(), request()), parse_slo("ttft=500ms,itl=100ms,e2e=5s"))
    assert (verdict.is_met, verdict.goodput_share, verdict.goodput_per_s) == (True, 1.0, 0.2)
    assert verdict.reason == "every objective is met"


def test_a_missed_limit_is_named_with_what_was_measured() -> None:
    verdict = judge(run_of(request(ttft_s=0.7)), parse_slo("ttft=500ms,e2e=5s"))
    assert not verdict.is_met
    assert verdict.reason == "ttft p99 700ms, limit 500ms"


def test_limits_hold_for_the_percentile_and_goodput_for_each_request() -> None:
    run = run_of(*(request(ttft_s=0.1) for _ in range(9)), request(ttft_s=9.0))
    verdict = judge(run, parse_slo("ttft=500ms,p=80"))
    assert (verdict.is_met, verdict.num_good, verdict.goodput_share) == (True, 9, 0.9)


def test_failed_requests_miss_the_slo_even_where_the_others_were_fast() -> None:
    run = run_of(*(request() for _ in range(9)), request(error="timeout"))
    verdict = judge(run, parse_slo("ttft=500ms,errors=5%"))
    assert (verdict.is_met, verdict.num_good) == (False, 9)
    assert verdict.reason == "errors 10%, limit 5%"


def test_a_run_in_which_everything_failed_has_no_value_to_praise() -> None:
    verdict = judge(run_of(request(error="timeout")), parse_slo("ttft=500ms,errors=100%"))
    assert not verdict.is_met
    assert verdict.reason == "ttft p99 has no value, limit 500ms"


def test_a_run_without_requests_meets_nothing() -> None:
    verdict = judge(run_of(), parse_slo("errors=1%"))
    assert (verdict.is_met, verdict.reason) == (False, "no request was sent")


def test_a_late_generator_is_named_in_the_verdict() -> None:
    verdict = judge(run_of(request(), is_bottleneck=True), parse_slo("ttft=500ms"))
    assert "the generator itself was late" in verdict.reason


def test_the_limit_on_gaps_looks_at_each_gap_of_a_request() -> None:
    stalled = request(num_tokens=3).model_copy(update={"chunk_times_s": (0.1, 0.12, 2.0)})
    assert not is_good(stalled, parse_slo("itl=100ms"))
    assert is_good(request(num_tokens=1), parse_slo("itl=100ms,tpot=1ms"))


@pytest.mark.slow
@given(st.floats(0.01, 3.0), st.floats(0.01, 3.0))
def test_a_looser_limit_never_lowers_goodput(a: float, b: float) -> None:
    run = random_run(num_requests=15)
    tight, loose = sorted((a, b))
    assert judge(run, Slo(ttft_s=tight)).num_good <= judge(run, Slo(ttft_s=loose)).num_good
