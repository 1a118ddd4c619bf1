"""Who may scrape: an admin key, or whoever reaches `metrics_port`."""

import asyncio
import socket
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from adapters.store.store import AdapterStore
from config.errors import ConfigError
from config.serve import ServeConfig
from loadtest.bench.server import free_port
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.api.guard import WebRules
from serve.api.metrics_port import MetricsPort, metrics_app
from tests.serving import Serving, make_serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def keys(tmp_path: Path) -> dict[str | None, str]:
    path, now = tmp_path / "keys.json", datetime.now(UTC)
    grants = {"tenant": KeyGrant(tenant="acme"), "admin": KeyGrant(tenant="ops", is_admin=True)}
    return {name: create_key(path, grant, now=now).token for name, grant in grants.items()}


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path, tmp_path: Path, keys: dict[str | None, str]) -> Serving:
    assert keys
    return make_serving(store, base_folder, keys=KeyRing(tmp_path / "keys.json"))


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("tenant", 403), ("admin", 200)])
async def test_with_keys_metrics_want_an_admin_key(
    serving: Serving, keys: dict[str | None, str], key: str | None, status: int
) -> None:
    async with serving.client(keys.get(key)) as client:
        response = await client.get("/metrics")
    assert (response.status_code, "lorikeet_ready" in response.text) == (status, status == 200)


async def test_without_keys_everybody_on_loopback_may_scrape(store: AdapterStore, base_folder: Path) -> None:
    async with make_serving(store, base_folder).client() as client:
        assert "lorikeet_ready" in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/metrics", {}, 200),
        ("/metrics", {"host": "evil.example"}, 403),
        ("/metrics", {"origin": "http://evil.example"}, 403),
        ("/v1/models", {}, 404),
        ("/admin/adapters", {}, 404),
    ],
)
async def test_the_metrics_port_has_one_route(
    serving: Serving, path: str, headers: dict[str, str], status: int
) -> None:
    app = metrics_app(serving.metrics, WebRules.of(ServeConfig(base="tiny"), "127.0.0.1"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        response = await client.get(path, headers=headers)
    assert (response.status_code, "lorikeet_ready" in response.text) == (status, status == 200)


async def test_the_metrics_port_answers_until_the_server_ends(serving: Serving) -> None:
    config = ServeConfig(base="tiny", metrics_port=free_port())
    running = asyncio.create_task(MetricsPort(config, serving.metrics).run())
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{config.metrics_port}/metrics")).text
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with socket.create_server(("127.0.0.1", config.metrics_port or 0)):
        assert "lorikeet_ready" in text


async def test_a_metrics_port_that_is_taken_is_named(serving: Serving) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"`metrics_port` {port} of '127.0.0.1': Address"):
            MetricsPort(ServeConfig(base="tiny", metrics_port=port), serving.metrics)


def test_the_metrics_port_is_not_the_servers() -> None:
    with pytest.raises(ValueError, match="metrics_port 8000 must differ from port"):
        ServeConfig(base="tiny", metrics_port=8000)
