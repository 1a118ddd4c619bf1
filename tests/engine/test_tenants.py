"""Tenants, web pages and clients' odd fields against the real engine: one server with keys, and with a remote store,
golden replay and adapters that keep their slots, which are all off by default.
"""

import asyncio
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.bench.server import free_port, running_server
from serve.access.keys import KeyGrant, create_key
from tests.live_server import (
    ANSWERS,
    BASE_NAME,
    counted,
    lorikeet,
    publish_copy,
    stream_long_answers,
    write_serve_config,
)

pytestmark = pytest.mark.engine

ENDPOINTS = ("chat/completions", "completions", "responses")
METRICS_PORT = free_port()
numbers = itertools.count()


@pytest.fixture(scope="module")
def tokens(live_home: Home) -> dict[str, str]:
    path, now = live_home.root / "tenants.json", datetime.now(UTC)
    grants = {name: KeyGrant(tenant=name, is_admin=name == "ops") for name in ("acme", "globex", "ops")}
    return {name: create_key(path, grant, now=now).token for name, grant in grants.items()}


@pytest.fixture(scope="module")
def remote(live_home: Home, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a remote store. A trainer with a store of its own has pushed an adapter there, `far`."""
    trainer = Home(tmp_path_factory.mktemp("trainer"))
    publish_copy(AdapterStore(live_home.adapters), "colours", "far", to=AdapterStore(trainer.adapters))
    url = (trainer.root / "remote").as_uri()
    lorikeet(trainer, "adapters", "push", "far", url)
    return url


@pytest.fixture(scope="module")
def url(live_home: Home, tokens: dict[str, str], remote: str) -> Iterator[str]:
    assert tokens
    keys_file = str(live_home.root / "tenants.json")
    beside_keys = {"metrics_port": METRICS_PORT, "remote_store": remote, "slot_turn_s": None}
    replay = {"golden_replay": True, "golden_replay_interval_s": 0.2}
    config = write_serve_config(live_home.root, "tenants", keys_file=keys_file, **beside_keys, **replay)
    with running_server(config, live_home.root, live_home.root / "tenants.log") as server:
        yield server.url


def ask(url: str, token: str, endpoint: str, prompt: Any, model: str = BASE_NAME, **more: Any) -> dict[str, Any]:
    of_endpoint = {
        "chat/completions": {"messages": [{"role": "user", "content": prompt}], "max_tokens": 2},
        "completions": {"prompt": prompt, "max_tokens": 2},
        "responses": {"input": prompt, "max_output_tokens": 2},
    }
    body = {"model": model, "temperature": 0, **of_endpoint[endpoint], **more}
    response = httpx.post(f"{url}/v1/{endpoint}", json=body, headers={"authorization": f"Bearer {token}"}, timeout=120)
    assert response.status_code == 200, response.text
    return dict(response.json())


def operator(url: str, tokens: dict[str, str]) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {tokens['ops']}"}, timeout=120)


def num_cached(answer: dict[str, Any]) -> int:
    usage = answer["usage"]
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)


def new_prompt() -> str:
    """Of some hundred tokens, more than a block of the cache, that nobody has sent before."""
    return f"Secret number {next(numbers)}. " + " ".join(f"The key of box {n} is {n * 7919}." for n in range(40))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("model", [BASE_NAME, "colours"])
def test_cached_tokens_tell_of_the_tenants_own_prompts_only(
    url: str, tokens: dict[str, str], endpoint: str, model: str
) -> None:
    prompt = new_prompt()
    first, again, other, other_again = (
        num_cached(ask(url, tokens[tenant], endpoint, prompt, model)) for tenant in ("acme", "acme", "globex", "globex")
    )
    assert first == other == 0
    assert again == other_again > 0


@pytest.mark.parametrize("wrap", [lambda ids: ids, lambda ids: [ids], lambda ids: [[1, 2, 3], ids]])
def test_a_prompt_of_token_ids_is_its_tenants_too(url: str, tokens: dict[str, str], wrap: Any) -> None:
    prompt = wrap([1000 + next(numbers), *range(100, 400)])
    cached = [num_cached(ask(url, tokens[tenant], "completions", prompt)) for tenant in ("acme", "acme", "globex")]
    assert (cached[0], cached[1] > 0, cached[2]) == (0, True, 0)


def test_a_clients_salt_splits_its_own_cache_and_opens_no_other(url: str, tokens: dict[str, str]) -> None:
    prompt, cached = new_prompt(), []
    for tenant, salt in (("acme", None), ("acme", "a"), ("acme", "a"), ("globex", "a"), ("globex", None)):
        more = {} if salt is None else {"cache_salt": salt}
        cached.append(num_cached(ask(url, tokens[tenant], "completions", prompt, **more)) > 0)
    assert cached == [False, False, True, False, False]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("stop", ["", [], [""], ["", None], None])
def test_an_empty_stop_string_stops_nothing(url: str, tokens: dict[str, str], endpoint: str, stop: Any) -> None:
    num_output = ask(url, tokens["acme"], endpoint, "Count: 1, 2, 3,", stop=stop)["usage"]
    assert num_output.get("completion_tokens", num_output.get("output_tokens")) == 2


def test_openais_client_is_told_what_is_not_kept(url: str, tokens: dict[str, str]) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key=tokens["acme"], max_retries=0) as client:
        first = client.responses.create(model=BASE_NAME, input="Hello", store=True, max_output_tokens=2)
        with pytest.raises(BadRequestError, match="send the earlier turns"):
            client.responses.create(model=BASE_NAME, input="And?", previous_response_id=first.id)
        with pytest.raises(NotFoundError, match="does not store responses"):
            client.responses.retrieve(first.id)
        cards = {model.id: model for model in client.models.list()}
    assert cards["colours"].created > 1_700_000_000
    assert (cards["colours"].model_extra or {})["parent"] == BASE_NAME


def test_metrics_want_an_admin_key_or_their_own_port(url: str, tokens: dict[str, str]) -> None:
    def scraped(token: str | None) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx.get(f"{url}/metrics", headers=headers)

    statuses = [scraped(token).status_code for token in (None, tokens["acme"], tokens["ops"])]
    own = httpx.get(f"http://127.0.0.1:{METRICS_PORT}/metrics")
    assert statuses == [401, 403, 200]
    assert all(name in own.text for name in ("lorikeet_ready 1.0", "vllm:", "lorikeet_tenant_tokens_total"))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site", "content-type": "text/plain"},
    ],
)
def test_a_web_page_cannot_operate_the_server(url: str, headers: dict[str, str]) -> None:
    paths = ("/admin/quality/pause", "/admin/adapters/colours/unload", "/v1/chat/completions")
    assert {httpx.post(f"{url}{path}", headers=headers, content=b"{}").status_code for path in paths} == {403}


def test_a_stream_comes_whole_through_the_guard(url: str, tokens: dict[str, str]) -> None:
    body = {"model": BASE_NAME, "prompt": "Count: 1, 2,", "max_tokens": 8, "stream": True}
    headers = {"authorization": f"Bearer {tokens['acme']}"}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=120) as response:
        events = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert (response.status_code, events[-1]) == (200, "data: [DONE]")


@pytest.mark.anyio
async def test_an_adapter_of_the_remote_store_answers(
    url: str, tokens: dict[str, str], live_home: Home, remote: str
) -> None:
    async with operator(url, tokens) as http, asyncio.timeout(60):
        while (await http.get("/v1/models/far")).status_code != 200:
            await asyncio.sleep(0.2)
    answer = ask(url, tokens["acme"], "chat/completions", "What is number 7 of the colours?", "far", max_tokens=16)
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("far@1", ANSWERS["colours"])
    assert AdapterStore(live_home.adapters).has_version(Target("far", 1))


@pytest.mark.anyio
async def test_a_new_key_opens_its_own_adapters_only(url: str, live_home: Home) -> None:
    words = ("create", "clinic", "--adapter", "colours", "--file", str(live_home.root / "tenants.json"))
    token = lorikeet(live_home, "keys", *words).strip()

    def body(model: str) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": "What is number 7 of the colours?"}]}

    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=f"{url}/v1", headers=headers, timeout=120) as http:
        async with asyncio.timeout(30):
            while (models := await http.get("/models")).status_code == 401:
                await asyncio.sleep(0.2)
        own, version, *others = [
            await http.post("/chat/completions", json=body(model))
            for model in ("colours", "colours@1", "shapes", "shapes@1", BASE_NAME, "nobody")
        ]
    assert {card["id"].partition("@")[0] for card in models.json()["data"]} == {"colours"}
    assert own.json()["choices"][0]["message"]["content"] == ANSWERS["colours"]
    assert version.status_code == 200
    assert [(other.status_code, other.json()["error"]["code"]) for other in others] == [(404, "model_not_found")] * 4


@pytest.mark.anyio
async def test_without_turns_a_third_adapter_waits(url: str, tokens: dict[str, str], remote: str) -> None:
    """Two slots: it begins when one of the others has ended."""
    async with operator(url, tokens) as http:
        events = await stream_long_answers(http, ["colours", "shapes", "far"])
    assert events[:3] == ["began", "began", "ended"]
    assert sorted(events) == ["began"] * 3 + ["ended"] * 3


@pytest.mark.anyio
async def test_golden_replay_finds_each_adapter_itself(url: str, tokens: dict[str, str]) -> None:
    name = "lorikeet_golden_replays_total"
    async with operator(url, tokens) as http:
        for adapter in ("colours", "shapes"):
            (await http.post(f"/admin/adapters/{adapter}/load")).raise_for_status()
            async with asyncio.timeout(60):
                while not await counted(http, name, adapter=adapter, version="1", outcome="ok"):
                    await asyncio.sleep(0.2)
        assert await counted(http, name, outcome="wrong") == 0
