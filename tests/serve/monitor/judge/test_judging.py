"""The judge's loop: what it grades, what it spends, and what it does where the judge fails. Time is made by hand."""

import asyncio
import logging
from pathlib import Path

import httpx
import pytest

from adapters.store.manifest import QualityRules
from adapters.store.store import AdapterStore
from quality.samples.records import Grade, Label
from serve.records import EvaluationResult
from tests.judge_bench import GOOD, Bench, Endpoint, sample
from tests.narrowing import not_none
from tests.samples import NOON_S
from tests.serving import make_serving

pytestmark = pytest.mark.anyio


async def test_a_sample_gets_a_grade_with_its_reason(bench: Bench) -> None:
    sample_id = bench.quality.add_sample(sample())
    await bench.judging(Endpoint(GOOD)).round()
    assert bench.quality.grades() == (Grade(sample_id, "prometheus-2", NOON_S, 0.75, "Right."),)
    assert bench.value("requests_total", outcome="ok") == 1


async def test_a_grade_is_told_with_its_request_and_its_reason_redacted(bench: Bench) -> None:
    told: list[EvaluationResult] = []
    bench.metrics.evaluated.listeners.append(told.append)
    bench.quality.add_sample(sample(request_id="r-1"))
    await bench.judging(Endpoint({"reason": "Names ada@example.org.", "grade": 4})).round()
    (result,) = told
    assert (result.name, result.lora_name, result.score, result.request_id) == ("judge", "medical@1", 0.75, "r-1")
    assert result.explanation == "Names [EMAIL]."


async def test_a_version_is_judged_by_the_rubric_that_it_brought(
    bench: Bench, store: AdapterStore, base_folder: Path
) -> None:
    make_serving(store, base_folder).publish("medical", quality=QualityRules(rubric="5: the right chapter."))
    bench.quality.add_sample(sample())
    endpoint = Endpoint(GOOD)
    await bench.judging(endpoint).round()
    assert "5: the right chapter." in endpoint.bodies[0]["messages"][1]["content"]


async def test_nothing_is_asked_twice(bench: Bench) -> None:
    bench.quality.add_samples([sample(number) for number in range(3)])
    endpoint = Endpoint(GOOD)
    judging = bench.judging(endpoint)
    await judging.round()
    await judging.round()
    await bench.judging(endpoint).round()  # after a restart
    assert len(endpoint.requests) == 3


async def test_samples_without_text_are_not_judged(bench: Bench) -> None:
    bench.quality.add_sample(sample(prompt=None, answer=None, privacy="features"))
    endpoint = Endpoint(GOOD)
    await bench.judging(endpoint).round()
    assert endpoint.requests == []


@pytest.mark.slow
async def test_only_the_share_that_is_drawn_is_judged_and_newest_first(bench: Bench) -> None:
    bench.quality.add_samples([sample(number) for number in range(100)])
    judging = bench.judging(Endpoint(GOOD), sample_rate=0.3)
    for _ in range(5):
        await judging.round()
    graded = [grade.sample_id for grade in bench.quality.grades()]
    assert 25 <= len(graded) <= 35
    assert graded == sorted(graded, reverse=True)


async def test_requests_are_spaced_by_their_limit_a_minute(bench: Bench) -> None:
    bench.quality.add_samples([sample(number) for number in range(4)])
    await bench.judging(Endpoint(GOOD), requests_per_minute=30).round()
    assert bench.time.now_s == NOON_S + 6.0  # the first one waits for nothing


async def test_the_days_tokens_end_the_work_also_after_a_restart(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.quality.add_samples([sample(number) for number in range(10)])
    endpoint = Endpoint(GOOD)
    with caplog.at_level(logging.WARNING):
        judging = bench.judging(endpoint, tokens_per_day=1200)
        await judging.round()
        await judging.round()
    num_asked = len(endpoint.requests)
    assert 0 < num_asked < 10
    assert [record.message for record in caplog.records if "resumes tomorrow" in record.message] != []
    assert len(caplog.records) == 1  # once, not each round
    await bench.judging(endpoint, tokens_per_day=1200).round()
    assert len(endpoint.requests) == num_asked


async def test_the_next_day_has_its_own_tokens(bench: Bench) -> None:
    bench.quality.add_samples([sample(number) for number in range(3)])
    bench.quality.add_judge_tokens("prometheus-2", "2026-11-22", 10_000)
    endpoint = Endpoint(GOOD)
    judging = bench.judging(endpoint, tokens_per_day=10_000)
    await judging.round()
    assert endpoint.requests == []
    bench.time.now_s += 86_400
    await judging.round()
    assert len(endpoint.requests) == 3


async def test_tries_are_few_and_ever_further_apart(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    endpoint = Endpoint(httpx.Response(500))
    await bench.judging(endpoint, max_attempts=4, requests_per_minute=6000).round()
    assert len(endpoint.requests) == 4
    assert bench.time.naps_s == [1.0, 2.0, 4.0]


@pytest.mark.slow
async def test_a_judge_that_goes_on_failing_is_asked_ever_more_seldom(bench: Bench) -> None:
    bench.quality.add_samples([sample(number) for number in range(20)])
    endpoint = Endpoint(httpx.Response(401))
    judging = bench.judging(endpoint)
    pauses = [await judging.round() for _ in range(11)]
    assert pauses[:3] == [10.0, 20.0, 40.0]
    assert pauses[-1] == 3600.0
    assert len(endpoint.requests) == 11
    endpoint.answers = [GOOD]
    await judging.round()
    assert len(bench.scores()) == 9  # the others are left out until a restart


async def test_a_reply_that_is_no_grade_costs_only_its_own_sample(bench: Bench) -> None:
    bench.quality.add_samples([sample(number) for number in range(3)])
    endpoint = Endpoint("Nice answer!", "Very nice!", GOOD)
    await bench.judging(endpoint, max_attempts=2, requests_per_minute=6000).round()
    assert bench.scores() == [0.75, 0.75]
    assert bench.value("requests_total", outcome="invalid") == 2
    assert [body["temperature"] for body in endpoint.bodies] == [0.0, 0.7, 0.0, 0.0]  # else it says the same again


async def test_a_store_that_fails_is_logged_and_the_loop_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.quality.close()
    bench.time.most_naps = 3
    with pytest.raises(asyncio.CancelledError):
        await bench.judging(Endpoint(GOOD)).run()
    assert caplog.text.count("Judging failed") == 4


async def test_the_mean_score_of_a_version_is_exported_and_not_called_calibrated(
    bench: Bench, store: AdapterStore, base_folder: Path
) -> None:
    make_serving(store, base_folder).publish("medical")
    bench.quality.add_samples([sample(0), sample(1)])
    judging = bench.judging(Endpoint(GOOD, {"reason": "", "grade": 1}))
    await judging.round()
    await judging.show()
    assert bench.value("score", adapter="medical", version="1", calibrated="false") == 0.375
    assert bench.value("score", adapter="medical", version="1", calibrated="true") is None


@pytest.mark.slow
async def test_enough_labels_calibrate_the_judge_and_kappa_says_how_well(
    bench: Bench, store: AdapterStore, base_folder: Path
) -> None:
    make_serving(store, base_folder).publish("medical")
    ids = bench.quality.add_samples([sample(number) for number in range(4)])
    judging = bench.judging(Endpoint(GOOD), min_labels=4)
    await judging.show()
    for sample_id, score in zip(ids, (1.0, 1.0, 0.0, 0.0), strict=True):
        bench.quality.add_grade(Grade(sample_id, "prometheus-2", NOON_S, score))
        bench.quality.add_label(Label(sample_id, "ada", NOON_S, score))
        await judging.show()
    assert bench.value("score", adapter="medical", version="1", calibrated="true") == 0.5
    assert bench.value("score", adapter="medical", version="1", calibrated="false") is None
    assert bench.value("kappa", adapter="medical") == 1.0
    assert not_none(bench.value("kappa_ci_low", adapter="medical")) < 0.5
    assert bench.value("kappa_ci_high", adapter="medical") == 1.0


async def test_a_version_that_was_removed_has_no_score(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    judging = bench.judging(Endpoint(GOOD))
    await judging.round()
    await judging.show()
    assert bench.value("score", adapter="medical", version="1", calibrated="false") is None


async def test_the_base_is_judged_like_any_other(bench: Bench) -> None:
    bench.quality.add_sample(sample(adapter="base", version=0))
    judging = bench.judging(Endpoint(GOOD))
    await judging.round()
    await judging.show()
    assert bench.value("score", adapter="base", version="", calibrated="false") == 0.75


@pytest.mark.slow
@pytest.mark.parametrize("jump_s", [-365 * 86_400.0, -3600.0, 365 * 86_400.0])
async def test_a_clock_that_jumps_does_not_stop_the_judge(bench: Bench, jump_s: float) -> None:
    bench.quality.add_samples([sample(number) for number in range(40)])
    judging = bench.judging(Endpoint(GOOD))
    await judging.round()
    bench.time.now_s += jump_s
    await judging.round()
    assert len(bench.quality.grades()) == 40
    assert max(bench.time.naps_s) <= 60.0
    assert bench.value("kappa", adapter="medical") is not None  # shown since, though the clock went back


async def test_a_judge_that_cannot_be_reached_leaves_no_sample_out(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    judging = bench.judging(Endpoint(httpx.ConnectError("nobody there"), GOOD), max_attempts=1)
    await judging.round()
    assert bench.quality.grades() == ()
    await judging.round()
    assert len(bench.quality.grades()) == 1
