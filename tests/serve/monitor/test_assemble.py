"""The whole monitor beside a server: a client's answer becomes a sample, and what is off keeps nothing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from adapters.store.store import AdapterStore
from config.home import Home
from config.serve import ServeConfig
from quality.samples.store import QualityStore
from serve.access.keys import KeyRing
from serve.app import Parts
from serve.build import Foundation, build_parts
from serve.engine.protocol import Answer, Endpoint
from serve.monitor.assemble import open_storage
from serve.observe.metrics import ServeMetrics
from serve.records import AnsweredRequest, Caller, Observers, RequestResult
from tests.fake_engine import FakeEngine
from tests.generations import generation
from tests.serving import BASE_NAME, Serving, chat

pytestmark = pytest.mark.anyio


class TellingEngine(FakeEngine):
    """Tells the observers of each answer, as the real engine does."""

    def __init__(self, observers: Observers) -> None:
        super().__init__()
        self._observers = observers

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], caller: Caller, result: RequestResult | None = None
    ) -> Answer:
        lora_name = body["model"] if body["model"] != BASE_NAME else None
        self._observers.generation_started(lora_name, caller.source)
        self._observers.generation_finished(generation(lora_name))
        return await super().answer(endpoint, body, caller, result)


def make_watched(store: AdapterStore, base_folder: Path, home: Home, **quality: object) -> tuple[Serving, Parts]:
    fields = {"base": base_folder.name, "served_model_name": BASE_NAME, "quality": {"sample_rate": 1.0} | quality}
    config = ServeConfig.model_validate(fields)
    observers, metrics = Observers(), ServeMetrics(CollectorRegistry(), BASE_NAME)
    engine, keys, storage = TellingEngine(observers), KeyRing(None), open_storage(config, home)
    parts = build_parts(Foundation(config, store, base_folder, engine, metrics, keys, observers, storage))
    return Serving(engine, store, base_folder, metrics, parts.residency, parts), parts


async def ask_and_stop(serving: Serving, parts: Parts) -> None:
    running = [asyncio.create_task(work()) for work in parts.background]
    await asyncio.sleep(0)
    async with serving.client() as client:
        body = chat("medical")
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_clients_answer_becomes_a_sample(store: AdapterStore, base_folder: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    serving, parts = make_watched(store, base_folder, home)
    serving.publish("medical")
    await ask_and_stop(serving, parts)
    with QualityStore(home.quality) as kept:
        assert [(sample.adapter, sample.version) for sample in kept.samples()] == [("medical", 1)]
    labels = {"adapter": "medical", "version": "1"}
    assert serving.metrics.registry.get_sample_value("lorikeet_answers_total", labels) == 1


async def test_a_monitor_that_is_off_keeps_nothing(store: AdapterStore, base_folder: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    serving, parts = make_watched(store, base_folder, home, enabled=False)
    serving.publish("medical")
    await ask_and_stop(serving, parts)
    assert not home.root.exists()
    labels = {"adapter": "medical", "version": "1"}
    assert serving.metrics.registry.get_sample_value("lorikeet_prompt_tokens_total", labels) == 40


class Requests:
    """Remembers whose requests were seen."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []

    def request_finished(self, record: AnsweredRequest) -> None:
        self.keys.append(record.context.sticky_key)


async def test_observers_are_told_the_key_that_a_version_was_drawn_by(
    store: AdapterStore, base_folder: Path, tmp_path: Path
) -> None:
    serving, parts = make_watched(store, base_folder, Home(tmp_path / "home"))
    requests = Requests()
    assert parts.monitor is not None
    parts.monitor.observers.of_requests.append(requests)
    serving.publish("medical")
    body = chat("medical")
    async with serving.client() as client:
        for changes in ({"user": "ada"}, {}, {"model": "medical@1", "user": "ada"}, {"model": "medical@stable"}):
            await client.post("/v1/chat/completions", json=body | changes, headers={"x-request-id": "r-7"})
    assert requests.keys == ["ada", "r-7", None, None]
