"""`lorikeet serve`: who may reach it, which keys it takes, and how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner, Result

from adapters.bases import read_base
from adapters.store.manifest import MANIFEST_FILE
from adapters.store.store import AdapterStore
from config.home import Home
from config.serve import ServeConfig
from loadtest.bench.server import free_port
from lorikeet import app
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.errors import UnauthorizedError
from serve.supervisor import Supervisor
from tests.peft_folders import write_base_folder
from tests.serving import BASE_NAME, make_serving
from tests.tracked_files import ROOT


@pytest.fixture
def home(tmp_path: Path) -> Home:
    write_base_folder(tmp_path / "bases" / "tiny")
    return Home(tmp_path)


def serve(home: Home, *options: str, **config: Any) -> Result:
    file = home.root / "serve.yaml"
    file.write_text(yaml.safe_dump({"base": "tiny", "served_model_name": BASE_NAME} | config))
    return CliRunner().invoke(app, ["serve", str(file), "--home", str(home.root), *options])


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> list[KeyRing]:
    """The key rings that servers would have run with; none runs."""
    found: list[KeyRing] = []

    def run(config: ServeConfig, home: Home, keys: KeyRing, judge_key: str | None) -> None:
        found.append(keys)

    monkeypatch.setattr("serve.cli.run", run)
    return found


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_without_keys_only_loopback_is_listened_on(home: Home, rings: list[KeyRing], host: str) -> None:
    result = serve(home, "--host", host)
    assert result.exit_code == 1
    assert "Without API keys the server may listen on loopback only" in " ".join(result.stderr.split())
    assert "lorikeet keys create" in result.stderr
    assert rings == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_without_keys_loopback_asks_for_none(home: Home, rings: list[KeyRing], host: str) -> None:
    assert serve(home, "--host", host).exit_code == 0
    assert rings[0].authenticate(None).tenant


@pytest.mark.parametrize("name", ["keys.json", "others.json"])
def test_with_keys_every_address_is_open_to_those_who_have_one(home: Home, rings: list[KeyRing], name: str) -> None:
    """The state folder's `keys.json` is taken without being named."""
    created = create_key(home.root / name, KeyGrant(tenant="acme"), now=datetime.now(UTC))
    config = {} if name == "keys.json" else {"keys_file": str(home.root / name)}
    assert serve(home, "--host", "0.0.0.0", **config).exit_code == 0
    assert rings[0].authenticate(f"Bearer {created.token}").tenant == "acme"
    with pytest.raises(UnauthorizedError):
        rings[0].authenticate(None)


def store_as_bitsandbytes(base_folder: Path) -> None:
    manifest = read_base(base_folder).model_copy(update={"quantization": "nf4", "storage": "bitsandbytes"})
    (base_folder / MANIFEST_FILE).write_text(manifest.model_dump_json())


def test_a_base_that_nothing_installed_reads_is_refused(
    home: Home, rings: list[KeyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_as_bitsandbytes(home.bases / "tiny")
    assert serve(home).exit_code == 0
    monkeypatch.setitem(sys.modules, "vllm_bnb_plugin", None)  # as Python hides a module
    result = serve(home)
    assert (result.exit_code, len(rings)) == (1, 1)
    said = " ".join(result.stderr.split())
    assert "Base 'tiny' holds bitsandbytes' tensors" in said
    assert "pip install --no-deps vllm-bnb-plugin" in said


def test_an_engine_that_never_starts_ends_the_server_with_exit_code_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = make_serving(AdapterStore(home.adapters), home.bases / "tiny")
    serving.engine.is_ready = False
    serving.engine.start_errors = [RuntimeError("no memory") for _ in range(9)]
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def build_server(*_: object) -> object:
        watcher = serving.parts.supervisor._watcher
        return replace(
            serving.parts,
            supervisor=Supervisor(serving.engine, serving.residency, watcher, serving.metrics, sleep=sleep),
        )

    monkeypatch.setattr("serve.build.build_server", build_server)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a server sets what its engine wants
    result = serve(home, port=free_port())
    assert result.exit_code == 1
    assert "The engine failed to start 3 times" in " ".join(result.stderr.split())
    assert (serving.engine.starts, pauses) == (3, [1, 2])


DRAINED = """
import asyncio, sys
from pathlib import Path
import serve.build
from adapters.bases import read_base
from adapters.store.manifest import MANIFEST_FILE
from adapters.store.store import AdapterStore
from config.home import Home
from serve.access.keys import KeyRing
from serve.cli import run
from serve.engine.protocol import Answer
from config.serve import ServeConfig
from tests.fake_engine import FakeEngine
from tests.serving import make_serving

class SlowEngine(FakeEngine):
    async def answer(self, endpoint, body, caller, result=None):
        print("asked", flush=True)
        await asyncio.sleep(body["max_tokens"])
        return await super().answer(endpoint, body, caller, result)

home, port = Home(Path(sys.argv[1])), int(sys.argv[2])
settings = {"port": port, "drain_timeout_s": 2}
serving = make_serving(AdapterStore(home.adapters), home.bases / "tiny", engine=SlowEngine(), **settings)
serve.build.build_server = lambda *_: serving.parts
run(ServeConfig(base="tiny", served_model_name="tiny-base", **settings), home, KeyRing(None))
"""


@contextmanager
def draining_server(home: Home, port: int) -> Iterator["subprocess.Popen[str]"]:
    """It drains for two seconds; its engine takes as many seconds as a request has `max_tokens`, and says `asked`."""
    command = [sys.executable, "-c", DRAINED, str(home.root), str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_server_that_ends_waits_for_running_requests_and_not_longer(home: Home) -> None:
    port = free_port()

    def ask(seconds: int) -> int:
        body = {"model": BASE_NAME, "messages": [], "max_tokens": seconds}
        transport = httpx.HTTPTransport(retries=8)  # until it listens
        with httpx.Client(transport=transport, timeout=120) as client:
            try:
                return client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body).status_code
            except httpx.TransportError:
                return 0

    with draining_server(home, port) as process, ThreadPoolExecutor() as threads:
        assert process.stdout is not None
        answers = [threads.submit(ask, seconds) for seconds in (1, 100)]
        assert [process.stdout.readline() for _ in answers] == ["asked\n"] * 2
        process.send_signal(signal.SIGTERM)
        quick, slow = (answer.result() for answer in answers)
        assert quick == 200
        assert slow != 200
        process.wait(timeout=60)
