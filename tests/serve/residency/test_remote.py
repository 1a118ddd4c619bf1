"""A server whose adapters are in a remote store: mirrored by name, fetched when asked for, served while it is away."""

import asyncio
import shutil
from pathlib import Path

import pytest

from adapters.remote.remote import RemoteStore
from adapters.store.store import AdapterStore
from serve.residency.mirror import RemoteMirror
from tests.eventually import eventually
from tests.serving import Serving, chat, make_serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    folder = tmp_path / "remote"
    folder.mkdir()
    return folder


@pytest.fixture
def serving(tmp_path: Path, base_folder: Path, remote: Path) -> Serving:
    """Its own store is empty; `medical@1` is in the remote one."""
    origin = make_serving(AdapterStore(tmp_path / "origin"), base_folder)
    origin.publish("medical")
    RemoteStore(f"file://{remote}", origin.store).push(origin.store.resolve("medical"))
    return make_serving(AdapterStore(tmp_path / "cache"), base_folder, remote_store=f"file://{remote}")


def mirror(serving: Serving, remote: Path) -> None:
    RemoteStore(f"file://{remote}", serving.store).sync()


async def test_a_remote_version_is_fetched_for_the_first_request(serving: Serving, remote: Path) -> None:
    async with serving.client() as client:
        before = await client.post("/v1/chat/completions", json=chat("medical"))
        mirror(serving, remote)
        answered = await client.post("/v1/chat/completions", json=chat("medical"))
        unknown = await client.post("/v1/chat/completions", json=chat("medical@7"))
    assert (before.status_code, answered.status_code, unknown.status_code) == (404, 200, 404)
    assert answered.headers["x-lorikeet-adapter"] == "medical@1"
    assert serving.store.versions("medical") == [1]


@pytest.mark.slow
async def test_while_the_remote_is_away_what_is_here_is_served_and_the_rest_is_a_503(
    serving: Serving, remote: Path
) -> None:
    mirror(serving, remote)
    away = remote.with_name("away")
    shutil.move(remote, away)
    async with serving.client() as client:
        absent = await client.post("/v1/chat/completions", json=chat("medical"))
        shutil.move(away, remote)
        fetched = await client.post("/v1/chat/completions", json=chat("medical"))
        shutil.move(remote, away)
        cached = await client.post("/v1/chat/completions", json=chat("medical"))
    assert (absent.status_code, fetched.status_code, cached.status_code) == (503, 200, 200)
    assert absent.json()["error"]["code"] == "not_ready"
    assert "retry-after" in absent.headers


async def test_the_mirror_goes_on_when_the_remote_was_away(
    serving: Serving, remote: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = remote.with_name("away")
    shutil.move(remote, away)
    running = asyncio.create_task(RemoteMirror(RemoteStore(f"file://{remote}", serving.store), 0.02).run())
    await eventually(lambda: "Cannot mirror the remote store" in caplog.text)
    shutil.move(away, remote)
    await eventually(lambda: serving.store.history("medical"))
    running.cancel()
    assert caplog.text.count("Cannot mirror the remote store") == 1
