"""The judge's loop with everything around it: an endpoint that answers as told, and a clock that is set by hand."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from adapters.store.store import AdapterStore
from config.monitor import JudgeConfig
from quality.samples.records import Sample
from quality.samples.store import QualityStore
from serve.monitor.judge.asking import HttpJudge, http_judge_client
from serve.monitor.judge.judging import Judging
from serve.observe.metrics import ServeMetrics
from tests.samples import NOON_S, SAMPLE

GOOD = {"reason": "Right.", "grade": 4}
URL = "http://judge.test/v1"


def sample(number: int = 0, **changes: Any) -> Sample:
    return replace(SAMPLE, at_s=NOON_S + number, **changes)


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
def bench(quality: QualityStore, store: AdapterStore) -> Bench:
    """A judge's loop over an empty quality store."""
    return Bench(quality, ServeMetrics(CollectorRegistry(), "base"), Time(), store)
