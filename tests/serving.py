"""A server of hand-made parts: a real store and base folder, and a `FakeEngine`."""

from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from adapters.base import read_base
from adapters.fingerprint import FINGERPRINT_FILE
from adapters.manifest import Manifest
from adapters.store import AdapterStore
from config.schema import ServeConfig
from serve.app import Parts, create_app
from serve.metrics import ServeMetrics
from serve.residency import Residency
from serve.resolver import Resolver
from tests.fake_engine import FakeEngine, fingerprint
from tests.peft_folders import draft_for, write_peft_folder

BASE_NAME = "tiny-base"


@dataclass
class Serving:
    """The parts of a server, for tests to look into."""

    engine: FakeEngine
    store: AdapterStore
    base_folder: Path
    metrics: ServeMetrics
    residency: Residency
    app: FastAPI

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

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")


def make_serving(store: AdapterStore, base_folder: Path, **changes: object) -> Serving:
    config = ServeConfig.model_validate({"base": base_folder.name, "served_model_name": BASE_NAME} | changes)
    engine, metrics = FakeEngine(), ServeMetrics(CollectorRegistry(), BASE_NAME)
    residency = Residency(store, engine, base_folder, config, metrics)
    app = create_app(Parts(engine, Resolver(store, residency, BASE_NAME), metrics, config.max_body_bytes))
    return Serving(engine, store, base_folder, metrics, residency, app)
