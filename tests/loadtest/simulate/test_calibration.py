"""A server's speed from a run: known speeds are found again, and the run's own figures are repeated."""

from dataclasses import replace

import pytest

from loadtest.errors import LoadtestError
from loadtest.load.records import RequestRecord, RunResult
from loadtest.simulate.calibration import Limits, calibrate, requests_of
from loadtest.simulate.demand import make_requests
from loadtest.simulate.fleet import simulate
from loadtest.simulate.replica import ServerModel, SimulatedRequest
from tests.runs import request, run_of

TRUE = ServerModel(
    step_s=0.03, sequence_s=0.004, prompt_token_s=0.0005, overhead_s=0.01, load_s=0.8,
    max_running=16, max_loras=8, max_adapters=4,
)  # fmt: skip
LIMITS = Limits(max_running=16, max_loras=8, max_adapters=4)


def record_of(number: int, done: SimulatedRequest) -> RequestRecord:
    """As a load test would have seen it; tokens between the first and the last evenly."""
    steps = max(1, done.answer_tokens - 1)
    gap_s = (done.end_s - done.first_token_s) / steps
    times = tuple(done.first_token_s + gap_s * step for step in range(done.answer_tokens))
    fields = request(number, model=f"a-{done.adapter}", is_cold=done.is_cold).model_dump()
    return RequestRecord.model_validate(fields | {
        "intended_s": done.at_s, "sent_s": done.at_s, "chunk_times_s": times, "ended_s": done.end_s,
        "num_prompt_tokens": done.prompt_tokens, "num_completion_tokens": done.answer_tokens,
    })  # fmt: skip


def run_by(model: ServerModel, rate: float = 1.5) -> RunResult:
    requests = make_requests(600, rate, 6, 1.0, [(40, 16), (160, 24), (320, 32)], seed=3)
    simulate(model, requests, 1, "random")
    return run_of(*(record_of(number, done) for number, done in enumerate(requests)), duration_s=100.0)


@pytest.fixture(scope="module")
def found() -> ServerModel:
    return calibrate(run_by(TRUE), LIMITS)


@pytest.mark.slow
def test_known_speeds_are_found_again(found: ServerModel) -> None:
    assert found.step_s + 4 * found.sequence_s == pytest.approx(TRUE.step_s + 4 * TRUE.sequence_s, rel=0.15)
    assert found.prompt_token_s == pytest.approx(TRUE.prompt_token_s, rel=0.3)
    assert found.load_s == pytest.approx(TRUE.load_s, rel=0.2)


def test_the_run_itself_is_repeated(found: ServerModel) -> None:
    run = run_by(TRUE)
    truth = simulate(TRUE, requests_of(run), 1, "random")
    again = simulate(found, requests_of(run), 1, "random")
    assert again.ttft_p50_s == pytest.approx(truth.ttft_p50_s, rel=0.15)
    assert again.tokens_per_s == pytest.approx(truth.tokens_per_s, rel=0.05)


def test_a_load_that_the_run_does_not_show_is_given() -> None:
    run = run_by(replace(TRUE, max_adapters=64))
    warm = run.model_copy(update={"records": tuple(r for r in run.records if not r.is_cold)})
    with pytest.raises(LoadtestError, match="--load-s"):
        calibrate(warm, LIMITS)
    assert calibrate(warm, LIMITS, load_s=1.5).load_s == 1.5


def test_a_run_without_streams_is_refused() -> None:
    with pytest.raises(LoadtestError, match="0 streamed answers"):
        calibrate(run_of(*(request(n, num_tokens=1) for n in range(50))), LIMITS)


def test_a_run_of_cold_requests_only_is_refused() -> None:
    with pytest.raises(LoadtestError, match="cold requests only"):
        calibrate(run_of(*(request(n, is_cold=True) for n in range(50))), LIMITS)


def test_failed_requests_are_left_out() -> None:
    run = run_of(request(0), request(1, error="timeout"), request(2, is_cold=None))
    assert [own.adapter for own in requests_of(run)] == [0, None]
