"""Tenants, web pages and clients' odd fields against the real engine: one server with keys."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from config.home import Home
from loadtest.bench.server import free_port, running_server
from serve.access.keys import KeyGrant, create_key
from tests.live_server import BASE_NAME, write_serve_config

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
def url(live_home: Home, tokens: dict[str, str]) -> Iterator[str]:
    assert tokens
    keys_file = str(live_home.root / "tenants.json")
    config = write_serve_config(live_home.root, "tenants", keys_file=keys_file, metrics_port=METRICS_PORT)
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
        with pytest.raises(NotFoundError, match="keeps no responses"):
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
