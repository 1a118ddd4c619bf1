"""Two replicas of the real server on one machine, behind one endpoint, by a Ray that the command starts and ends."""

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.bench.server import RunningServer, free_port, running_command
from serve.access.keys import KeyGrant, create_key
from tests.live_server import ANSWERS, BASE_NAME, chat, publish_copy, write_serve_config

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

MAX_SEQUENCES = 2
HOT = "colours-hot"
MOVED = "colours-moved"


@pytest.fixture(scope="module")
def keys(live_home: Home) -> dict[str, str]:
    """Tokens by tenant: one may do everything, the other two requests a minute."""
    file, now = live_home.root / "cluster-keys.json", datetime.now(UTC)
    grants = (KeyGrant(tenant="operator", is_admin=True), KeyGrant(tenant="small", requests_per_minute=2))
    return {grant.tenant: create_key(file, grant, now=now).token for grant in grants}


@pytest.fixture(scope="module")
def cluster(live_home: Home, keys: dict[str, str]) -> Iterator[RunningServer]:
    store = AdapterStore(live_home.adapters)
    publish_copy(store, "colours", HOT)
    publish_copy(store, "colours", MOVED)
    publish_copy(store, "colours", MOVED)
    config = write_serve_config(
        live_home.root,
        "cluster",
        cpu_compile=False,
        max_num_seqs=MAX_SEQUENCES,
        quality={"enabled": False},  # its questions would load adapters, too
        keys_file=str(live_home.root / "cluster-keys.json"),
    )
    port = free_port()
    words = ["serve", str(config), "--home", str(live_home.root), "--port", str(port), "--cluster", "ray"]
    command = [sys.executable, "-P", "-m", "lorikeet", *words, "--replicas", "2"]
    log_file = live_home.root / "cluster.log"
    with running_command(command, f"http://127.0.0.1:{port}", "/ready", log_file, 240) as server:
        wait_for_replicas(server, keys["operator"])
        yield server
        started = psutil.Process(server.pid).children(recursive=True)
    assert psutil.wait_procs(started, timeout=10)[1] == []


@pytest.fixture
async def http(cluster: RunningServer, keys: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.url, headers=bearer(keys["operator"]), timeout=120) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def wait_for_replicas(server: RunningServer, token: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        text = httpx.get(f"{server.url}/metrics", headers=bearer(token), timeout=30).text
        if {'replica="0"', 'replica="1"'} <= set(text.replace("{", ",").replace("}", ",").split(",")):
            return
        assert time.monotonic() < deadline, "two replicas in time"
        time.sleep(0.5)


async def answered(http: httpx.AsyncClient, adapter: str) -> Counter[str]:
    """Requests for an adapter that were answered, by replica."""
    text = (await http.get("/metrics")).raise_for_status().text
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "lorikeet_requests_total" and sample.labels["adapter"] == adapter:
                counts[sample.labels["replica"]] += int(sample.value)
    return counts


async def ask(http: httpx.AsyncClient, model: str, **more: Any) -> dict[str, Any]:
    response = await http.post("/v1/chat/completions", json=chat(model, **more))
    return dict(response.raise_for_status().json())


async def test_replicas_answer_as_the_single_server(http: httpx.AsyncClient) -> None:
    answers = {domain: await ask(http, domain) for domain in ANSWERS}
    assert {domain: answer["choices"][0]["message"]["content"] for domain, answer in answers.items()} == ANSWERS
    assert (await ask(http, BASE_NAME))["model"] == BASE_NAME


async def test_an_adapter_stays_on_one_replica_and_the_next_goes_to_the_other(http: httpx.AsyncClient) -> None:
    for _ in range(4):
        for domain in ANSWERS:
            await ask(http, domain)
    colours, shapes = await answered(http, "colours"), await answered(http, "shapes")
    assert len(+colours) == len(+shapes) == 1
    assert set(+colours) != set(+shapes)


async def test_a_hot_adapter_is_served_by_both_replicas(http: httpx.AsyncClient) -> None:
    many = (ask(http, HOT, max_tokens=100, stop=None, ignore_eos=True) for _ in range(6 * MAX_SEQUENCES))
    assert {answer["model"] for answer in await asyncio.gather(*many)} == {f"{HOT}@1"}
    assert len(+await answered(http, HOT)) == 2


async def test_a_stream_passes_through_piece_by_piece(http: httpx.AsyncClient) -> None:
    body = chat("colours", stream=True, max_tokens=60, stop=None, ignore_eos=True)
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        came_s = [(time.monotonic(), line) async for line in response.aiter_lines() if line]
    assert came_s[-1][1] == "data: [DONE]"
    assert came_s[0][0] < came_s[-1][0]
    assert len({at_s for at_s, _ in came_s}) > 10


async def test_a_rollback_reaches_both_replicas(http: httpx.AsyncClient, live_home: Home) -> None:
    store = AdapterStore(live_home.adapters)
    store.promote(MOVED, 2)
    assert (await ask(http, MOVED))["model"] == f"{MOVED}@2"
    store.rollback(MOVED)
    many = (ask(http, MOVED, max_tokens=60, stop=None, ignore_eos=True) for _ in range(6 * MAX_SEQUENCES))
    assert {answer["model"] for answer in await asyncio.gather(*many)} == {f"{MOVED}@1"}
    assert len(+await answered(http, MOVED)) == 2


async def test_a_quarantine_reaches_both_replicas(http: httpx.AsyncClient, live_home: Home) -> None:
    store = AdapterStore(live_home.adapters)
    target = store.resolve(MOVED)
    store.quarantine(target, "in a test")
    many = (http.post("/v1/chat/completions", json=chat(MOVED)) for _ in range(6 * MAX_SEQUENCES))
    assert {response.status_code for response in await asyncio.gather(*many)} == {422}
    store.lift_quarantine(target)
    assert (await ask(http, MOVED))["model"] == str(target)


async def test_a_key_has_its_limit_over_all_replicas(http: httpx.AsyncClient, keys: dict[str, str]) -> None:
    many = (http.post("/v1/chat/completions", json=chat(BASE_NAME), headers=bearer(keys["small"])) for _ in range(6))
    statuses = Counter(response.status_code for response in await asyncio.gather(*many))
    assert statuses == {200: 2, 429: 4}


async def test_a_request_without_a_valid_key_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=chat("colours"), headers=bearer("lk-none"))
    assert response.status_code == 401
    assert (await http.get("/metrics", headers={"authorization": ""})).status_code == 401


async def test_every_process_listens_on_loopback_only(cluster: RunningServer) -> None:
    processes = [psutil.Process(cluster.pid), *psutil.Process(cluster.pid).children(recursive=True)]
    listening = [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address for address in listening if not address.removeprefix("::ffff:").startswith("127.")} <= {"::1"}


async def test_a_killed_replica_comes_back_while_the_other_answers(
    http: httpx.AsyncClient, cluster: RunningServer, keys: dict[str, str]
) -> None:
    children = psutil.Process(cluster.pid).children(recursive=True)
    replicas = [child for child in children if ":Replica" in "".join(child.cmdline())]
    assert len(replicas) == 2
    replicas[0].send_signal(signal.SIGKILL)
    for domain in (*ANSWERS, *ANSWERS):
        assert (await ask(http, domain))["choices"][0]["message"]["content"] == ANSWERS[domain]
    await asyncio.to_thread(wait_for_replicas, cluster, keys["operator"])


async def test_a_replica_that_came_back_has_loaded_its_share(http: httpx.AsyncClient) -> None:
    loads: Counter[str] = Counter()
    for family in text_string_to_metric_families((await http.get("/metrics")).raise_for_status().text):
        for sample in family.samples:
            if sample.name == "lorikeet_adapter_loads_total":
                loads[sample.labels["replica"]] += int(sample.value)
    assert set(+loads) == {"0", "1"}
