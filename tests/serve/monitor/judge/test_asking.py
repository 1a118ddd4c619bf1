"""Asking a judge, over HTTP or in this server's own engine, and which of the two a configuration names."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from config.monitor import JudgeConfig
from config.serve import ServeConfig
from lorikeet import app
from quality.judge import grade_task
from serve.engine.protocol import BACKGROUND_PRIORITY, Answer
from serve.errors import EngineRequestError, NotReadyError
from serve.monitor.judge.asking import EngineJudge, retry_after_s
from serve.monitor.judge.judges import judge_answers
from serve.records import Caller
from tests.fake_engine import FakeEngine
from tests.judge_bench import GOOD, URL, Bench, Endpoint, sample
from tests.peft_folders import write_base_folder
from tests.samples import NOON_S
from tests.serving import make_serving

pytestmark = pytest.mark.anyio


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


class JudgingEngine(FakeEngine):
    """Answers as a judge does."""

    error: Exception | None = None

    async def answer(self, endpoint: Any, body: dict[str, Any], caller: Caller, result: Any = None) -> Answer:
        self.bodies.append(body)
        self.sources = [*getattr(self, "sources", []), caller.source]
        if self.error is not None:
            raise self.error
        return Answer({"choices": [{"message": {"content": json.dumps(GOOD)}}], "usage": {"total_tokens": 80}})


async def test_this_servers_own_base_judges_behind_everybody_elses_requests(bench: Bench) -> None:
    bench.quality.add_sample(sample())
    engine = JudgingEngine()
    await bench.judging_by(EngineJudge(engine, "base"), JudgeConfig(sample_rate=1.0)).round()
    assert bench.scores() == [0.75]
    assert engine.bodies[0]["priority"] == BACKGROUND_PRIORITY
    assert engine.sources == ["monitor"]
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
    assert "names the environment variable 'LK_JUDGE_KEY_FOR_TESTS', which is not set" in result.stderr
