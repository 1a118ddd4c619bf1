"""The judge's loop: what it grades, what it spends, and what it does where the judge fails. Time is made by hand."""

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from adapters.manifest import QualityRules
from adapters.store import AdapterStore
from config.monitor import JudgeConfig
from config.schema import ServeConfig
from lorikeet import app
from quality.judge import grade_task
from quality.kept import Grade, Label, Sample
from quality.signals import signals_of
from quality.store import QualityStore
from serve.engine.protocol import Answer
from serve.errors import EngineRequestError, NotReadyError
from serve.metrics import ServeMetrics
from serve.monitor.asking import EngineJudge, HttpJudge, http_judge_client, retry_after_s
from serve.monitor.comparing import Comparing
from serve.monitor.judges import judge_answers
from serve.monitor.judging import Judging
from serve.records import current_source
from serve.shadow import SHADOW_PRIORITY
from tests.fake_engine import FakeEngine
from tests.peft_folders import write_base_folder
from tests.serving import make_serving

NOON_S = 1795348800.0  # 2026-11-22 12:00 UTC
GOOD = {"reason": "Right.", "grade": 4}
URL = "http://judge.test/v1"

SAMPLE = Sample(
    id=0,
    at_s=NOON_S,
    request_id="r-1",
    adapter="medical",
    version=1,
    tenant_hash=None,
    source="client",
    privacy="full",
    num_prompt_tokens=12,
    ttft_s=0.1,
    e2e_s=0.5,
    signals=signals_of("I20", num_tokens=2, finish_reason="stop"),
    prompt="Angina?",
    answer="I20",
)

pytestmark = pytest.mark.anyio


class Time:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now_s = NOON_S
        self.naps_s: list[float] = []
        self.most_naps = 1000

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        if len(self.naps_s) == self.most_naps:
            raise asyncio.CancelledError
        self.naps_s.append(seconds)
        self.now_s += seconds


class Endpoint:
    """A judge's server: answers each request with the next of `answers`, the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else completion(answer)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.requests]


def completion(reply: Any, num_tokens: int | None = 100) -> httpx.Response:
    text = reply if isinstance(reply, str) else json.dumps(reply)
    usage = {"usage": {"total_tokens": num_tokens}} if num_tokens else {}
    return httpx.Response(200, json={"choices": [{"message": {"content": text}}]} | usage)


@pytest.fixture
def quality(tmp_path: Path) -> Iterator[QualityStore]:
    with QualityStore(tmp_path / "quality.sqlite3") as store:
        yield store


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def metrics() -> ServeMetrics:
    return ServeMetrics(CollectorRegistry(), "base")


def sample(number: int = 0, **changes: Any) -> Sample:
    return replace(SAMPLE, at_s=NOON_S + number, **changes)


class Bench:
    """A loop with everything around it."""

    def __init__(self, quality: QualityStore, metrics: ServeMetrics, time: Time, adapters: AdapterStore) -> None:
        self.quality, self.metrics, self.time, self.adapters = quality, metrics, time, adapters

    def judging(self, endpoint: Endpoint, **changes: Any) -> Judging:
        config = JudgeConfig.model_validate({"url": URL, "model": "prometheus-2", "sample_rate": 1.0} | changes)
        client = http_judge_client(URL, "secret", config.timeout_s, httpx.MockTransport(endpoint))
        return self.judging_by(HttpJudge(client, "prometheus-2", self.time), config)

    def judging_by(self, judge: Any, config: JudgeConfig) -> Judging:
        return Judging(
            judge,
            self.quality,
            self.metrics,
            config,
            self.adapters,
            clock=self.time,
            sleep=self.time.sleep,
            jitter=lambda: 0.0,
        )

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"lorikeet_judge_{name}", labels)

    def scores(self) -> list[float]:
        return [grade.score for grade in self.quality.grades()]


@pytest.fixture
def bench(quality: QualityStore, metrics: ServeMetrics, time: Time, store: AdapterStore) -> Bench:
    return Bench(quality, metrics, time, store)


async def test_a_sample_gets_a_grade_with_its_reason(bench: Bench) -> None:
    sample_id = bench.quality.add_sample(sample())
    await bench.judging(Endpoint(GOOD)).round()
    assert bench.quality.grades() == (Grade(sample_id, "prometheus-2", NOON_S, 0.75, "Right."),)
    assert bench.value("requests_total", outcome="ok") == 1


async def test_the_judge_is_asked_as_any_openai_client_asks(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    endpoint = Endpoint(GOOD)
    await bench.judging(endpoint).round()
    (request,), (body,) = endpoint.requests, endpoint.bodies
    task = grade_task("Angina?", "I20")
    assert str(request.url) == "http://judge.test/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("prometheus-2", 0)
    assert body["messages"] == list(task.messages)
    assert body["response_format"] == task.response_format


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
    assert [record.message for record in caplog.records if "goes on tomorrow" in record.message] != []
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


async def test_what_the_endpoint_says_it_cost_is_what_counts(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    await bench.judging(Endpoint(GOOD)).round()
    assert bench.quality.judge_tokens("prometheus-2", "2026-11-22") == 100


@pytest.mark.parametrize(
    ("failure", "outcome", "tokens"),
    [
        (httpx.Response(503, text="busy"), "error", True),
        (httpx.Response(429, json={"error": {"message": "slow down"}}), "throttled", False),
        (httpx.ConnectError("refused"), "unreachable", False),
        (httpx.ReadTimeout("late"), "timeout", True),
        (httpx.RemoteProtocolError("gone"), "error", True),
        (httpx.Response(200, text="<html>"), "error", True),
        (httpx.Response(200, json={"choices": []}), "error", True),
        ("no JSON", "invalid", True),
    ],
)
async def test_what_may_pass_is_tried_again(bench: Bench, failure: Any, outcome: str, tokens: bool) -> None:
    bench.quality.add_sample(sample())
    endpoint = Endpoint(failure, GOOD)
    await bench.judging(endpoint, requests_per_minute=6000).round()
    assert bench.scores() == [0.75]
    assert bench.value("requests_total", outcome=outcome) == 1
    assert bench.value("requests_total", outcome="ok") == 1
    assert (bench.quality.judge_tokens("prometheus-2", "2026-11-22") > 100) == tokens


async def test_tries_are_few_and_ever_further_apart(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    endpoint = Endpoint(httpx.Response(500))
    await bench.judging(endpoint, max_attempts=4, requests_per_minute=6000).round()
    assert len(endpoint.requests) == 4
    assert bench.time.naps_s == [1.0, 2.0, 4.0]


async def test_a_judge_that_names_a_time_is_not_asked_before(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    endpoint = Endpoint(httpx.Response(429, headers={"retry-after": "17"}), GOOD)
    await bench.judging(endpoint, requests_per_minute=6000).round()
    assert bench.time.naps_s == [17.0]
    assert bench.scores() == [0.75]


async def test_a_judge_that_wants_an_hour_gets_it(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    endpoint = Endpoint(httpx.Response(429, headers={"retry-after": "3600"}))
    assert await bench.judging(endpoint).round() == 3600.0
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("17", 17.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
async def test_a_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after_s(httpx.Headers({"retry-after": value}), NOON_S) == seconds


async def test_a_refusal_is_not_tried_again_and_says_why(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.quality.add_sample(sample())
    refusal = httpx.Response(404, json={"error": {"message": "The model `prometheus-2` does not exist."}})
    endpoint = Endpoint(refusal)
    with caplog.at_level(logging.WARNING):
        assert await bench.judging(endpoint).round() == 10.0
    assert len(endpoint.requests) == 1
    assert "answered 404: The model `prometheus-2` does not exist." in caplog.text


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
    assert bench.value("kappa_ci_low", adapter="medical") < 0.5  # type: ignore[operator]
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


class JudgingEngine(FakeEngine):
    """Answers as a judge does."""

    error: Exception | None = None

    async def answer(self, endpoint: Any, body: dict[str, Any]) -> Answer:
        self.bodies.append(body)
        self.sources = [*getattr(self, "sources", []), current_source.get()]
        if self.error is not None:
            raise self.error
        return Answer({"choices": [{"message": {"content": json.dumps(GOOD)}}], "usage": {"total_tokens": 80}})


async def test_this_servers_own_base_judges_behind_everybody_elses_requests(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    engine = JudgingEngine()
    await bench.judging_by(EngineJudge(engine, "base"), JudgeConfig(sample_rate=1.0)).round()
    assert bench.scores() == [0.75]
    assert engine.bodies[0]["priority"] == SHADOW_PRIORITY
    assert engine.sources == ["probe"]
    assert bench.quality.judge_tokens("base", "2026-11-22") == 80


async def test_an_engine_that_is_not_ready_is_not_asked(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    engine = JudgingEngine()
    engine.is_ready = False
    assert await bench.judging_by(EngineJudge(engine, "base"), JudgeConfig(sample_rate=1.0)).round() == 15.0
    assert engine.bodies == []


@pytest.mark.parametrize(
    ("error", "outcome"), [(NotReadyError("dead"), "unreachable"), (EngineRequestError("too long", 400), "refused")]
)
async def test_what_the_engine_refuses_is_counted(bench: Bench, error: Exception, outcome: str) -> None:
    bench.quality.add_sample(sample())
    engine = JudgingEngine()
    engine.error = error
    await bench.judging_by(EngineJudge(engine, "base"), JudgeConfig(sample_rate=1.0, max_attempts=1)).round()
    assert bench.value("requests_total", outcome=outcome) == 1


async def test_an_engine_that_never_answers_is_given_up(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    engine = FakeEngine()
    engine.never_answers = True
    config = JudgeConfig(sample_rate=1.0, max_attempts=1, timeout_s=0.01)
    await bench.judging_by(EngineJudge(engine, "base"), config).round()
    assert engine.was_cancelled
    assert bench.value("requests_total", outcome="timeout") == 1


async def run_until_graded(
    bench: Bench, base_folder: Path, config: dict[str, Any], engine: Any, endpoint: Endpoint
) -> None:
    """The loop as a server runs it, until the one sample has its grade."""
    serve = ServeConfig.model_validate({"base": "tiny", "quality": {"privacy": "full", "judge": config}})
    (loop,) = judge_answers(
        serve,
        engine,
        make_serving(bench.adapters, base_folder).residency,
        bench.adapters,
        bench.quality,
        bench.metrics,
        "secret",
        httpx.MockTransport(endpoint),
    )
    running = asyncio.create_task(loop())
    async with asyncio.timeout(30):
        while not bench.quality.grades():
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_server_asks_the_judge_that_its_configuration_names(bench: Bench, base_folder: Path) -> None:
    bench.quality.add_sample(sample())
    endpoint = Endpoint(GOOD)
    config = {"url": URL, "model": "prometheus-2", "sample_rate": 1.0}
    await run_until_graded(bench, base_folder, config, FakeEngine(), endpoint)
    assert [grade.judge for grade in bench.quality.grades()] == ["prometheus-2"]
    assert endpoint.requests[0].headers["authorization"] == "Bearer secret"


async def test_a_judge_without_a_url_is_this_servers_base(bench: Bench, base_folder: Path) -> None:
    bench.quality.add_sample(sample())
    await run_until_graded(bench, base_folder, {"sample_rate": 1.0}, JudgingEngine(), Endpoint(GOOD))
    assert [grade.judge for grade in bench.quality.grades()] == ["base"]


async def test_without_a_judge_nothing_runs(bench: Bench, base_folder: Path) -> None:
    serve = ServeConfig.model_validate({"base": "tiny", "quality": {"privacy": "full"}})
    residency = make_serving(bench.adapters, base_folder).residency
    loops = judge_answers(serve, FakeEngine(), residency, bench.adapters, bench.quality, bench.metrics, None)
    assert loops == []


async def test_a_server_does_not_start_without_the_key_that_it_was_told_of(tmp_path: Path) -> None:
    write_base_folder(tmp_path / "bases" / "tiny")
    file = tmp_path / "serve.yaml"
    judge = {"url": URL, "model": "prometheus-2", "api_key_env": "LK_JUDGE_KEY_FOR_TESTS"}
    file.write_text(json.dumps({"base": "tiny", "quality": {"privacy": "full", "judge": judge}}))
    result = CliRunner().invoke(app, ["serve", str(file), "--home", str(tmp_path)], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "names 'LK_JUDGE_KEY_FOR_TESTS', but that variable is not set" in result.stderr


class AnsweringEngine(FakeEngine):
    """Every version says the same."""

    async def answer(self, endpoint: Any, body: dict[str, Any]) -> Answer:
        self.endpoints = [*getattr(self, "endpoints", []), endpoint]
        self.bodies.append(body)
        return Answer({"choices": [{"text": "I21"}]})


class Trial:
    """medical@1 is stable and medical@2 its canary, whose answer is a sample."""

    def __init__(self, bench: Bench, base_folder: Path) -> None:
        self.bench = bench
        self.serving = make_serving(bench.adapters, base_folder)
        self.serving.publish("medical")
        self.serving.publish("medical", promote=False)
        bench.adapters.promote("medical", 2, "canary")
        self.engine = AnsweringEngine()
        self.canarys = bench.quality.add_sample(sample(version=2))

    async def judged(self, *replies: Any, **changes: Any) -> Endpoint:
        endpoint = Endpoint(*replies)
        config = JudgeConfig.model_validate({"url": URL, "model": "m", "sample_rate": 1.0, "pairwise": True} | changes)
        client = http_judge_client(URL, None, config.timeout_s, httpx.MockTransport(endpoint))
        bench = self.bench
        residency, adapters = self.serving.residency, bench.adapters
        comparing = Comparing(self.engine, residency, adapters, bench.quality, bench.time)
        calls = {"clock": bench.time, "sleep": bench.time.sleep, "jitter": lambda: 0.0}
        judge = HttpJudge(client, "m", bench.time)
        await Judging(judge, bench.quality, bench.metrics, config, adapters, comparing, **calls).round()  # type: ignore[arg-type]
        return endpoint

    def preference(self) -> list[float]:
        return [grade.score for grade in self.bench.quality.grades(judge="m against medical@1")]


@pytest.fixture
def trial(bench: Bench, base_folder: Path) -> Trial:
    return Trial(bench, base_folder)


def better(word: str) -> dict[str, str]:
    return {"reason": "So.", "better": word}


@pytest.mark.parametrize(
    ("shown", "swapped", "score"),
    [("second", "first", 1.0), ("first", "second", 0.0), ("first", "first", 0.5), ("tie", "tie", 0.5)],
)
async def test_a_canarys_answer_is_compared_with_stables_in_both_orders(
    trial: Trial, shown: str, swapped: str, score: float
) -> None:
    endpoint = await trial.judged(better(shown), better(swapped), GOOD)
    assert trial.preference() == [score]
    first, second = (body["messages"][1]["content"] for body in endpoint.bodies[:2])
    assert first.index("I21") < first.index("I20")
    assert second.index("I20") < second.index("I21")
    assert [grade.judge for grade in trial.bench.quality.grades()] == ["m against medical@1", "m"]


async def test_a_canarys_preference_is_exported_beside_its_score(trial: Trial) -> None:
    await trial.judged(better("second"), better("first"), GOOD)
    bench = trial.bench
    await bench.judging_by(HttpJudge(http_judge_client(URL, None, 1.0), "m"), JudgeConfig()).show()
    assert bench.value("preference", adapter="medical", version="2") == 1.0
    assert bench.value("score", adapter="medical", version="2", calibrated="false") == 0.75


async def test_stable_is_asked_the_very_prompt_behind_all_clients(trial: Trial) -> None:
    await trial.judged(better("tie"), better("tie"), GOOD)
    (body,) = trial.engine.bodies
    assert (trial.engine.endpoints, body["model"], body["prompt"]) == (["completions"], "medical@1", "Angina?")
    assert (body["priority"], body["add_special_tokens"], body["temperature"]) == (SHADOW_PRIORITY, False, 0)


async def test_only_a_canarys_answers_are_compared(trial: Trial) -> None:
    trial.bench.quality.add_samples([sample(1), sample(2, adapter="base", version=0), sample(3, adapter="legal")])
    await trial.judged(GOOD, GOOD, GOOD, better("tie"), better("tie"), GOOD)
    assert trial.preference() == [0.5]
    assert len(trial.bench.quality.grades(judge="m")) == 4


async def test_a_redacted_prompt_is_not_put_to_stable(trial: Trial) -> None:
    trial.bench.quality.prune(before_s=NOON_S + 1, most_samples=10)
    trial.bench.quality.add_sample(sample(5, version=2, privacy="redacted", prompt="Write to [EMAIL]"))
    await trial.judged(GOOD)
    assert trial.preference() == []
    assert trial.bench.scores() == [0.75]


async def test_where_stable_does_not_answer_the_canary_is_graded_alone(trial: Trial) -> None:
    trial.serving.engine.load_error = "no room"
    await trial.judged(GOOD)
    assert trial.preference() == []
    assert trial.bench.scores() == [0.75]


async def test_a_comparison_that_is_kept_is_not_made_again(trial: Trial) -> None:
    trial.bench.quality.add_grade(Grade(trial.canarys, "m against medical@1", NOON_S, 1.0))
    await trial.judged(GOOD)
    assert trial.preference() == [1.0]
    assert trial.engine.bodies == []
