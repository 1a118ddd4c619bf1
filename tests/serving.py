"""A server of hand-made parts: a real store and base folder, and a `FakeEngine`."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from adapters.bases import read_base
from adapters.fingerprint import FINGERPRINT_FILE
from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore
from config.serve import ServeConfig
from serve.access.keys import KeyRing
from serve.app import Parts, create_app
from serve.build import Foundation, build_parts
from serve.jobs.services import JobServices, open_services
from serve.observe.metrics import ServeMetrics
from serve.records import AnsweredRequest, Observers
from serve.residency.golden_replay import GoldenReplay
from serve.residency.parity import Tolerance
from serve.residency.residency import Residency
from tests.fake_engine import FakeEngine, fingerprint
from tests.peft_folders import draft_for, write_peft_folder

BASE_NAME = "tiny-base"
JSON = {"content-type": "application/json"}

COMPLETION_SCOPE: dict[str, Any] = {
    "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
    "headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http", "server": ("localhost", 80),
    "client": ("test", 1),
}  # fmt: skip
"""An ASGI request, for tests that hand in their own `receive`."""


def chat(model: str = BASE_NAME, **more: Any) -> dict[str, Any]:
    """The body of a request to `/v1/chat/completions`."""
    return {"model": model, "messages": [{"role": "user", "content": "Angina"}]} | more


class FinishedRequests:
    """Remembers them, as an observer."""

    def __init__(self) -> None:
        self.requests: list[AnsweredRequest] = []

    def request_finished(self, record: AnsweredRequest) -> None:
        self.requests.append(record)


@dataclass
class Serving:
    """The parts of a server, for tests to look into."""

    engine: FakeEngine
    store: AdapterStore
    base_folder: Path
    metrics: ServeMetrics
    residency: Residency
    parts: Parts
    finished: FinishedRequests = field(default_factory=FinishedRequests)
    jobs: JobServices | None = None

    @cached_property
    def app(self) -> FastAPI:
        """Made when it is first asked: its routes take longer than all other parts, and many tests ask none."""
        return create_app(self.parts)

    def publish(self, name: str = "medical", *, promote: bool = True, **changes: object) -> Manifest:
        """Publish a tiny adapter with a fingerprint that the fake engine matches."""
        base = read_base(self.base_folder)
        folder = write_peft_folder(self.store.root.parent / f"made-{name}")
        golden = fingerprint(base.digest, base.chat_template_sha256)
        (folder / FINGERPRINT_FILE).write_text(golden.model_dump_json())
        manifest = self.store.publish(folder, draft_for(folder, name, **({"base": base.ref} | changes)))
        if promote:
            self.store.promote(name, manifest.version)
        return manifest

    def golden_replay(self) -> GoldenReplay:
        return GoldenReplay(self.engine, self.residency, self.metrics, interval_s=0.01, tolerance=Tolerance(0.25, 0.25))

    def client(self, token: str | None = None) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


def make_serving(
    store: AdapterStore,
    base_folder: Path,
    *,
    keys: KeyRing | None = None,
    engine: FakeEngine | None = None,
    jobs_folder: Path | None = None,
    **changes: object,
) -> Serving:
    """A server; files and jobs are served where they have a folder."""
    config = ServeConfig.model_validate({"base": base_folder.name, "served_model_name": BASE_NAME} | changes)
    engine, metrics = engine or FakeEngine(), ServeMetrics(CollectorRegistry(), BASE_NAME)
    observers, finished = Observers(), FinishedRequests()
    jobs = open_services(jobs_folder, config.jobs) if jobs_folder else None
    keys = keys or KeyRing(None)
    parts = build_parts(Foundation(config, store, base_folder, engine, metrics, keys, observers, jobs=jobs))
    observers.of_requests.append(finished)
    return Serving(engine, store, base_folder, metrics, parts.residency, parts, finished, jobs)
