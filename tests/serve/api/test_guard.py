"""Web pages cannot operate the server; clients that are not browsers notice nothing."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from adapters.store.store import AdapterStore
from config.serve import ServeConfig
from serve.api.guard import WebRules
from serve.errors import CrossSiteError, ForeignHostError
from tests.peft_folders import write_base_folder
from tests.serving import BASE_NAME, JSON, Serving, make_serving

pytestmark = pytest.mark.anyio

CHAT = {"model": BASE_NAME, "messages": [{"role": "user", "content": "Hello"}]}
PAGE = "https://app.example"
EVIL = {"origin": "http://evil.example"}

ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/medical"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/admin/adapters"),
    ("POST", "/admin/adapters/medical/unload"),
    ("POST", "/admin/aliases/medical"),
    ("POST", "/admin/quality/pause"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/no-such-route"),
]
POSTS = [path for method, path in ROUTES if method == "POST"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def serving(folder: Path) -> Serving:
    """One server for all that follows: what is refused changes nothing."""
    serving = make_serving(AdapterStore(folder / "adapters"), write_base_folder(folder / "bases" / "tiny"))
    serving.publish("medical")
    return serving


async def status_of(serving: Serving, method: str, path: str, headers: dict[str, str], **body: Any) -> httpx.Response:
    async with serving.client() as client:
        return await client.request(method, path, headers=headers, **body)


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        *((*route, {"host": "evil.example"}, "host_not_allowed") for route in ROUTES),
        *((*route, EVIL, "cross_site") for route in ROUTES),
        (*ROUTES[0], {"origin": "null"}, "cross_site"),
        (*ROUTES[0], {"sec-fetch-site": "cross-site"}, "cross_site"),
        (*ROUTES[0], {"sec-fetch-site": "same-site"}, "cross_site"),
    ],
)
async def test_no_route_answers_another_sites_page(
    serving: Serving, method: str, path: str, headers: dict[str, str], code: str
) -> None:
    response = await status_of(serving, method, path, headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (403, code, "invalid_request_error")
    assert "access-control-allow-origin" not in response.headers
    assert serving.metrics.registry.get_sample_value(
        "lorikeet_rejections_total", {"adapter": "", "version": "", "reason": code}
    )


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1:9",
        "127.0.0.2",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
    ],
)
async def test_loopback_has_many_names(serving: Serving, host: str) -> None:
    assert (await status_of(serving, "GET", "/v1/models", {"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "a b", "[::2]"],
)
async def test_a_foreign_host_is_refused(serving: Serving, host: str) -> None:
    assert (await status_of(serving, "GET", "/v1/models", {"host": host})).status_code == 403


async def test_two_host_headers_are_refused(serving: Serving) -> None:
    async with serving.client() as client:
        response = await client.get("/v1/models", headers=[("host", "localhost"), ("host", "localhost")])
    assert response.status_code == 403


def test_an_old_client_without_a_host_header_is_answered(serving: Serving) -> None:
    rules = serving.parts.rules
    rules.check("GET", "/v1/models", Headers())
    with pytest.raises(CrossSiteError):
        rules.check("GET", "/v1/models", Headers({"origin": "http://evil.example"}))


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_an_orchestrator_checks_by_any_address(serving: Serving, path: str) -> None:
    assert (await status_of(serving, "GET", path, {"host": "10.1.2.3:8000"})).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed", "asked", "is_open"),
    [
        ("127.0.0.1", None, "llm.example", False),
        ("127.0.0.1", ("llm.example",), "LLM.example.:8000", True),
        ("127.0.0.1", ("llm.example",), "localhost", True),
        ("127.0.0.1", ("llm.example",), "other.example", False),
        ("127.0.0.1", ("*",), "other.example", True),
        ("0.0.0.0", None, "llm.example", True),
        ("0.0.0.0", ("llm.example",), "other.example", False),
        ("0.0.0.0", ("llm.example",), "0.0.0.0", False),
        ("0.0.0.0", ("llm.example",), "127.0.0.1", True),
        ("192.0.2.7", (), "192.0.2.7:8000", True),
        ("192.0.2.7", (), "192.0.2.8", False),
        ("gpu-box", (), "GPU-box", True),
    ],
)
def test_which_names_are_the_servers(host: str, allowed: tuple[str, ...] | None, asked: str, is_open: bool) -> None:
    rules = WebRules.of(ServeConfig(base="tiny", host=host, allowed_hosts=allowed), host)
    headers = httpx.Headers({"host": asked}).raw
    assert passes(rules, headers) is is_open


def passes(rules: WebRules, headers: list[tuple[bytes, bytes]]) -> bool:
    try:
        rules.check("GET", "/v1/models", Headers(raw=headers))
    except ForeignHostError:
        return False
    return True


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost"},
        {"origin": "http://localhost", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"user-agent": "OpenAI/Python 2"},
    ],
)
async def test_the_servers_own_pages_and_other_clients_are_answered(serving: Serving, headers: dict[str, str]) -> None:
    response = await status_of(serving, "POST", "/v1/chat/completions", headers, json=CHAT)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        *((path, None) for path in POSTS),
        *((path, "text/plain") for path in POSTS),
        *((POSTS[0], kind) for kind in ("application/x-www-form-urlencoded", "text/plain; application/json", "")),
    ],
)
async def test_a_body_that_is_not_json_by_its_header_is_a_415(
    serving: Serving, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await status_of(serving, "POST", path, headers, content=b"{}")
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_chunked_body_needs_a_media_type_too(serving: Serving) -> None:
    async def pieces() -> Any:
        yield b"{}"

    response = await status_of(serving, "POST", "/v1/chat/completions", {}, content=pieces())
    assert response.status_code == 415


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_may_name_its_character_set(serving: Serving, content_type: str) -> None:
    response = await status_of(serving, "POST", "/v1/chat/completions", {"content-type": content_type}, json=CHAT)
    assert response.status_code == 200


async def test_an_operators_post_without_a_body_needs_no_media_type(serving: Serving) -> None:
    assert (await status_of(serving, "POST", "/admin/adapters/medical/load", {})).status_code == 200


@pytest.fixture(scope="module")
def with_cors(serving: Serving) -> Serving:
    return make_serving(serving.store, serving.base_folder, cors_origins=[PAGE])


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


async def test_a_listed_page_may_ask_first(with_cors: Serving) -> None:
    response = await status_of(with_cors, "OPTIONS", "/v1/chat/completions", PREFLIGHT | {"origin": PAGE})
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-methods"] == "GET, POST, DELETE"
    assert response.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    assert response.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in response.headers


async def test_a_listed_page_may_read_answers_and_errors(with_cors: Serving) -> None:
    page = {"origin": PAGE, "sec-fetch-site": "cross-site"}
    answered = await status_of(with_cors, "POST", "/v1/chat/completions", page, json=CHAT)
    refused = await status_of(with_cors, "POST", "/v1/chat/completions", page, content=b"{}")
    assert [answered.status_code, refused.status_code] == [200, 415]
    assert answered.headers["access-control-allow-origin"] == refused.headers["access-control-allow-origin"] == PAGE
    assert "x-lorikeet-adapter" in answered.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "headers",
    [
        PREFLIGHT | EVIL,
        PREFLIGHT | {"origin": "http://app.example"},
        PREFLIGHT | {"origin": "https://app.example.evil.example"},
        PREFLIGHT | {"origin": "null"},
    ],
)
async def test_a_page_that_is_not_listed_is_told_nothing(with_cors: Serving, headers: dict[str, str]) -> None:
    response = await status_of(with_cors, "OPTIONS", "/v1/chat/completions", headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["vary"] == "Origin"


async def test_without_cors_no_preflight_is_answered(serving: Serving) -> None:
    response = await status_of(serving, "OPTIONS", "/v1/chat/completions", PREFLIGHT | {"origin": PAGE})
    assert response.status_code == 403
    assert "vary" not in response.headers


async def test_a_stream_passes_the_guard_in_pieces(serving: Serving) -> None:
    """The guard hands `receive` on, so that a client that leaves is noticed."""
    response = await status_of(serving, "POST", "/v1/chat/completions", JSON, json=CHAT | {"stream": True})
    assert response.text.endswith("data: [DONE]\n\n")
