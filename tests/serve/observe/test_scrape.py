"""A real Prometheus scrapes a real server: what its queries answer is what was sent. The engine is a stand-in."""

import bisect
import math
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from adapters.store.store import AdapterStore
from config.serve import ServeConfig
from serve.access.keys import KeyRing
from serve.build import Foundation, build_parts
from serve.engine.protocol import Answer, Endpoint
from serve.observe.metrics import TTFT_BUCKETS, ServeMetrics
from serve.records import Caller, GenerationRecord, Observers, RequestResult
from tests.fake_engine import FakeEngine
from tests.generations import generation
from tests.peft_folders import write_base_folder
from tests.serving import BASE_NAME, Serving, chat
from tests.tracked_files import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus, Debian's package of that name"),
]

NUM_REQUESTS = 200  # of each version
NUM_PROMPT_TOKENS, NUM_CACHED_TOKENS, NUM_COMPLETION_TOKENS = 40, 16, 12
NUM_UNKNOWN, NUM_INVALID = 7, 5


def ttfts(seed: int, median_s: float) -> list[float]:
    draw = random.Random(seed)
    return [median_s * math.exp(draw.gauss(0, 0.8)) for _ in range(NUM_REQUESTS)]


SENT = {BASE_NAME: ttfts(1, 0.2), "medical@1": ttfts(2, 0.25), "medical@2": ttfts(3, 1.2)}


class TimedEngine(FakeEngine):
    """Answers at once, and says that the first token took as long as the test wants."""

    def __init__(self, metrics: ServeMetrics) -> None:
        super().__init__()
        self.ttfts_s: list[float] = []
        self._metrics = metrics

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], caller: Caller, result: RequestResult | None = None
    ) -> Answer:
        lora_name = body["model"] if body["model"] != BASE_NAME else None
        self._metrics.generation_started(lora_name, caller.source)
        self._metrics.generation_finished(generation_of(lora_name, self.ttfts_s.pop(0)))
        return await super().answer(endpoint, body, caller, result)


def generation_of(lora_name: str | None, ttft_s: float) -> GenerationRecord:
    return generation(
        lora_name,
        queue_s=0.0,
        prefill_s=ttft_s,
        decode_s=0.55,
        ttft_s=ttft_s,
        itl_s=(0.05,) * (NUM_COMPLETION_TOKENS - 1),
        e2e_s=ttft_s + 0.55,
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        num_cached_tokens=NUM_CACHED_TOKENS,
        num_completion_tokens=NUM_COMPLETION_TOKENS,
        texts=("Neoplasms",),
    )


class Prometheus:
    """A running Prometheus, asked over HTTP."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **params: str) -> Any:
        return self._client.get(path, params=params).raise_for_status().json()["data"]

    def query(self, promql: str) -> dict[tuple[str, ...], float]:
        """Values of an instant query, by the labels' values in the order of their names."""
        rows = self.get("api/v1/query", query=promql)["result"]
        return {
            tuple(value for name, value in sorted(row["metric"].items()) if name != "__name__"): float(row["value"][1])
            for row in rows
        }

    def value(self, promql: str) -> float:
        """Of a query with one answer; NaN where there is none yet."""
        return next(iter(self.query(promql).values()), math.nan)

    def is_up(self) -> bool:
        try:
            return self._client.get("-/ready").is_success
        except httpx.ConnectError:
            return False


def until(is_true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scrape")


@pytest.fixture(scope="module")
def serving(folder: Path) -> Serving:
    """Two versions of an adapter on the stand-in engine."""
    base_folder = write_base_folder(folder / "bases" / "tiny")
    config = ServeConfig.model_validate({"base": base_folder.name, "served_model_name": BASE_NAME})
    store, metrics = AdapterStore(folder / "adapters"), ServeMetrics(CollectorRegistry(), BASE_NAME)
    engine = TimedEngine(metrics)
    parts = build_parts(Foundation(config, store, base_folder, engine, metrics, KeyRing(None), Observers()))
    serving = Serving(engine, store, base_folder, metrics, parts.residency, parts)
    serving.publish("medical")
    serving.publish("medical")
    return serving


@pytest.fixture(scope="module")
def server(serving: Serving) -> Iterator[str]:
    """The application on a port of its own; its address."""
    address = f"127.0.0.1:{free_port()}"
    server, thread = start(serving.app, address)
    try:
        until(lambda: server.started)
        yield address
    finally:
        server.should_exit = True
        thread.join()


def start(app: FastAPI, address: str) -> tuple[uvicorn.Server, threading.Thread]:
    host, port = address.split(":")
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=int(port), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    return server, thread


@pytest.fixture(scope="module")
def prometheus(server: str, folder: Path) -> Iterator[Prometheus]:
    """The configuration and the rules that are shipped, but for the target and the pace."""
    shipped = shutil.copytree(ROOT / "config" / "prometheus", folder / "prometheus") / "prometheus.yml"
    config = yaml.safe_load(shipped.read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server]}]
    shipped.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *("prometheus", f"--config.file={shipped}", f"--storage.tsdb.path={folder / 'tsdb'}"),
        *(f"--web.listen-address={address}", "--log.level=warn"),
    ]
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            with httpx.Client(base_url=f"http://{address}") as client:
                prometheus = Prometheus(client)
                until(prometheus.is_up)
                yield prometheus
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def scraped(serving: Serving, server: str, prometheus: Prometheus) -> Prometheus:
    """Prometheus after it has seen all that `SENT` says, and some requests that are refused."""
    with httpx.Client(base_url=f"http://{server}/v1") as client:
        send_all(serving, client, prometheus)
    return prometheus


def send_all(serving: Serving, client: httpx.Client, prometheus: Prometheus) -> None:
    send(serving, client, {model: ttfts_s[:1] for model, ttfts_s in SENT.items()})
    # A rate begins where its series is first seen, so every series is seen before the rest is sent.
    until(lambda: prometheus.value("sum(lorikeet_ttft_seconds_count)") == len(SENT))
    send(serving, client, {model: ttfts_s[1:] for model, ttfts_s in SENT.items()})
    assert {ask(client, f"nobody-{number}") for number in range(NUM_UNKNOWN)} == {404}
    assert {ask(client, "medical@2", max_tokens=10**9) for _ in range(NUM_INVALID)} == {400}
    num_sent = len(SENT) * NUM_REQUESTS + NUM_UNKNOWN + NUM_INVALID
    until(lambda: prometheus.value("sum(lorikeet_requests_total)") == num_sent)


def send(serving: Serving, client: httpx.Client, sent: dict[str, list[float]]) -> None:
    assert isinstance(serving.engine, TimedEngine)
    for model, ttfts_s in sent.items():
        serving.engine.ttfts_s = list(ttfts_s)
        assert {ask(client, model) for _ in ttfts_s} == {200}


def ask(client: httpx.Client, model: str, **more: Any) -> int:
    body = chat(model, **more)
    return client.post("chat/completions", json=body).status_code


def selector(model: str) -> str:
    adapter, _, version = model.partition("@")
    return f'{{adapter="{adapter}", version="{version}"}}'


def bucket_of(values: list[float], quantile: float) -> tuple[float, float]:
    """The bounds of the bucket that holds the value of this rank."""
    value = sorted(values)[math.ceil(quantile * len(values)) - 1]
    upper = bisect.bisect_left(TTFT_BUCKETS, value)
    return (0.0, *TTFT_BUCKETS)[upper], TTFT_BUCKETS[upper]


MEDICAL = (("medical", "1"), ("medical", "2"))


@pytest.mark.parametrize(
    ("query", "want"),
    [
        ('sum by (job) (up{job="lorikeet"})', {("lorikeet",): 1}),
        (
            'sum by (adapter, version) (lorikeet_requests_total{outcome="ok"})',
            dict.fromkeys([(BASE_NAME,), *MEDICAL], NUM_REQUESTS),
        ),
        (
            "sum by (reason) (lorikeet_rejections_total)",
            {("model_not_found",): NUM_UNKNOWN, ("invalid_request_error",): NUM_INVALID},
        ),
        (
            'sum by (adapter, version) (lorikeet_completion_tokens_total{adapter="medical"})',
            dict.fromkeys(MEDICAL, NUM_REQUESTS * NUM_COMPLETION_TOKENS),
        ),
        (
            'sum by (adapter, version) (lorikeet_cached_prompt_tokens_total{adapter="medical"})',
            dict.fromkeys(MEDICAL, NUM_REQUESTS * NUM_CACHED_TOKENS),
        ),
        (
            'sum by (adapter, version) (lorikeet_choices_total{adapter="medical", finish_reason="stop"})',
            dict.fromkeys(MEDICAL, NUM_REQUESTS),
        ),
        (
            "sum by (kind) (lorikeet_tenant_tokens_total)",
            {
                ("prompt",): 3 * NUM_REQUESTS * NUM_PROMPT_TOKENS,
                ("completion",): 3 * NUM_REQUESTS * NUM_COMPLETION_TOKENS,
            },
        ),
        ("sum by (adapter, version) (lorikeet_cold_start_seconds_count)", dict.fromkeys(MEDICAL, 1)),
        ("sum by (adapter, version) (lorikeet_adapter_resident)", dict.fromkeys(MEDICAL, 1)),
        ("lorikeet_requests_in_flight > 0", {}),
    ],
)
def test_counts_are_those_of_what_was_sent(scraped: Prometheus, query: str, want: dict[tuple[str, ...], float]) -> None:
    assert scraped.query(query) == want


@pytest.mark.parametrize("quantile", [0.5, 0.95])
@pytest.mark.parametrize("model", SENT)
def test_a_latency_is_that_of_what_was_sent_to_the_width_of_a_bucket(
    scraped: Prometheus, model: str, quantile: float
) -> None:
    low_s, high_s = bucket_of(SENT[model], quantile)
    buckets = f"sum by (le) (lorikeet_ttft_seconds_bucket{selector(model)})"
    assert low_s <= scraped.value(f"histogram_quantile({quantile}, {buckets})") <= high_s


@pytest.mark.parametrize("quantile", [0.5, 0.95])
@pytest.mark.parametrize("model", SENT)
def test_so_is_the_latency_that_the_rules_record(scraped: Prometheus, model: str, quantile: float) -> None:
    low_s, high_s = bucket_of(SENT[model][1:], quantile)
    recorded = f"adapter_version:lorikeet_ttft_seconds:p{quantile * 100:.0f}_rate5m{selector(model)}"
    until(lambda: low_s <= scraped.value(recorded) <= high_s)


def test_every_rule_is_evaluated_and_no_alert_fires(scraped: Prometheus) -> None:
    rules = [rule for group in scraped.get("api/v1/rules")["groups"] for rule in group["rules"]]
    until(lambda: {rule["health"] for rule in rules} == {"ok"})
    assert [alert["labels"] for alert in scraped.get("api/v1/alerts")["alerts"] if alert["state"] == "firing"] == []
