"""A whole fleet by Ray, with engines that only sleep: several bases, and replicas that come and go by load."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.bench.cluster_server import replicas_of
from loadtest.bench.server import RunningServer, free_port, running_command
from serve.cluster.settings import installed_versions
from tests.jobs_home import JobsHome
from tests.peft_folders import write_base_folder
from tests.serving import chat, make_serving
from tests.tracked_files import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

START_S = 240
CHANGE_S = 120


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Two bases with an adapter each."""
    home = Home(tmp_path)
    for base, adapter in (("small-nf4", "medical"), ("large-nf4", "legal")):
        folder = write_base_folder(home.bases / base)
        make_serving(AdapterStore(home.adapters), folder).publish(adapter)
    return home


def fleet_command(home: Home, port: int, *configs: dict[str, Any], **more: Any) -> list[str]:
    asked = {"configs": [config | {"port": port} for config in configs], **more}
    return [sys.executable, "-P", "-m", "tests.serve.cluster.fake_fleet", str(home.root), json.dumps(asked)]


def environment() -> dict[str, str]:
    """In which Ray's processes, too, can import the classes of `tests`."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


@contextmanager
def fleet(home: Home, *configs: dict[str, Any], **numbers: int) -> Iterator[RunningServer]:
    port = free_port()
    command = fleet_command(home, port, *configs, **numbers)
    log, url = home.root / "fleet.log", f"http://127.0.0.1:{port}"
    with running_command(command, url, "/ready", log, START_S, environment=environment()) as server:
        yield server


def workers_of(server: RunningServer) -> list[psutil.Process]:
    """Job workers, each with the process that ends it with its parent."""
    found = []
    for process in psutil.Process(server.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found += [process] if {"lorikeet", "worker"} <= set(process.cmdline()) else []
    return found


async def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + CHANGE_S
    while not await asyncio.to_thread(is_so):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.5)


async def answers_of_batch(http: httpx.AsyncClient, model: str) -> list[str]:
    """Which models have answered a batch of three lines."""
    url = "/v1/chat/completions"
    lines = [{"custom_id": str(n), "method": "POST", "url": url, "body": chat(model)} for n in range(3)]
    form = {"file": ("lines.jsonl", "\n".join(map(json.dumps, lines)).encode())}
    file = (await http.post("/v1/files", data={"purpose": "batch"}, files=form)).json()["id"]
    asked = {"input_file_id": file, "endpoint": url, "completion_window": "24h"}
    batch = (await http.post("/v1/batches", json=asked)).json()
    async with asyncio.timeout(CHANGE_S):
        while batch["status"] not in ("completed", "failed"):
            await asyncio.sleep(0.5)
            batch = (await http.get(f"/v1/batches/{batch['id']}")).json()
    assert batch["status"] == "completed", batch
    output = (await http.get(f"/v1/files/{batch['output_file_id']}/content")).text
    return [json.loads(row)["response"]["body"]["model"] for row in output.splitlines()]


async def test_several_bases_answer_behind_one_endpoint(home: Home) -> None:
    small = {"base": "small-nf4", "served_model_name": "small"}
    large = {"base": "large-nf4", "served_model_name": "large"}
    with fleet(home, small, large, replicas=1) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            listed = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
            assert listed == ["small", "medical", "medical@1", "large", "legal", "legal@1"]
            parents = [(await http.get(f"/v1/models/{name}")).json()["parent"] for name in ("medical", "legal")]
            assert parents == ["small", "large"]
            for name in ("small", "large", "medical", "legal"):
                answer = await http.post("/v1/chat/completions", json=chat(name))
                assert answer.json()["model"].partition("@")[0] == name
            assert (await http.post("/v1/chat/completions", json=chat("neither"))).status_code == 404
            await until(lambda: bool(workers_of(server)))
            (worker,) = workers_of(server)
            worker.kill()
            await until(lambda: [process.pid for process in workers_of(server)] not in ([], [worker.pid]))
            assert len(workers_of(server)) == 1
            with JobsHome(home.jobs) as jobs:
                job = jobs.running()
                jobs.queue.finish(job.id, "w1", "succeeded", fine_tuned_model="ft:large:acme::1", version="legal@1")
            answer = await http.post("/v1/chat/completions", json=chat("ft:large:acme::1"))
            assert answer.json()["model"] == "legal@1"
            assert await answers_of_batch(http, "legal") == ["legal@1"] * 3
            requests = [line for line in (await http.get("/metrics")).text.splitlines() if "requests_total{" in line]
            assert any('adapter="legal",base="large"' in line and 'replica="0"' in line for line in requests)
            assert not any('adapter="legal",base="small"' in line for line in requests)


async def test_replicas_come_and_go_without_a_failed_request(home: Home) -> None:
    autoscaling = {"target_load": 0.5, "scale_up_after_s": 2, "scale_down_after_s": 3, "scale_to_zero_after_s": 3}
    config = {"base": "small-nf4", "served_model_name": "small", "max_num_seqs": 4, "autoscaling": autoscaling}
    statuses: list[int] = []
    with fleet(home, config, replicas=0, max_replicas=2) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=CHANGE_S) as http:

            async def ask_on() -> None:
                while True:
                    statuses.append((await http.post("/v1/chat/completions", json=chat("medical"))).status_code)

            many = [asyncio.create_task(ask_on()) for _ in range(8)]
            await until(lambda: len(replicas_of(server.url)) == 2)
            for task in many[1:]:
                task.cancel()
            await until(lambda: len(replicas_of(server.url)) == 1)
            many[0].cancel()
            await asyncio.gather(*many, return_exceptions=True)
            await until(lambda: not replicas_of(server.url))
            assert (await http.get("/ready")).json() == {"status": "asleep"}
            assert (await http.post("/v1/chat/completions", json=chat("medical"))).status_code == 200
            assert (await http.get("/ready")).json() == {"status": "ready"}
    assert set(statuses) == {200}


async def test_other_versions_are_refused_before_a_replica_starts(home: Home) -> None:
    config = {"base": "small-nf4", "served_model_name": "small"}
    command = fleet_command(home, free_port(), config, replicas=1, versions=installed_versions() | {"torch": "0.0.1"})
    started = await asyncio.create_subprocess_exec(
        *command, env=environment(), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(START_S):
        _, errors = await started.communicate()
    assert started.returncode != 0
    assert b"but the application was started with 0.0.1. Install the same versions on all nodes" in errors
    assert b"Replica" not in errors
