"""Bodies: what is JSON, how much is read, for how long, how many at once, and who pays for what is refused."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.api.bodies import MAX_PARTS, BodyReader, Places, parse_object
from serve.errors import InvalidRequestError, RateLimitedError
from tests.serving import COMPLETION_SCOPE, JSON, Serving, chat, make_serving

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"{'a': 1}", "key must be a string"),
        (b'{"a": 1,}', "trailing comma"),
        (b'{"a": 1} {}', "trailing characters"),
        (b'{"a": 1}\x00', "trailing characters"),
        (b'{"a": NaN}', "line 1 column 7"),
        (b'{"a": -Infinity}', "line 1 column 8"),
        (b'{"a": ' + b"9" * 500_000 + b"}", "number out of range"),
        (b'{"a": 01}', "invalid number"),
        (b'{"a": 1, "a": 2}', 'duplicate key "a"'),
        (b'{"x": {"a": 1, "\\u0061": 2}}', 'duplicate key "a"'),
        (b'{"' + b"k" * 9000 + b'": 1, "' + b"k" * 9000 + b'": 1}', "line 1 column 180"),
        (b'{"a": "\xff"}', "invalid unicode"),
        (b'{"a": "\xc0\xaf"}', "invalid unicode"),
        (b'{"a": "\xed\xa0\x80"}', "invalid unicode"),
        (b'{"a": "\\ud83c"}', "unpaired surrogate"),
        (b'{"\\udf00": "a"}', "unpaired surrogate"),
        (b'{"a": "\n"}', "control character"),
        (b'{"a":' * 300, "nested too deeply"),
        (b"[]", "must be a JSON object, not list"),
        (b'"a"', "must be a JSON object, not str"),
        ('{"a": 1}'.encode("utf-16"), "not JSON"),
        (b'{"a": [' + b"[]," * 170_000 + b"[]]}", "objects, lists and object members"),
        (b"{" + b",".join(b'"%d":1' % number for number in range(50_000)) + b"}", "objects, lists and object members"),
    ],
)
def test_what_is_no_strict_json_is_refused_with_its_place(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_object(raw)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 250


@pytest.mark.slow
@pytest.mark.parametrize("is_ascii", [True, False])
@given(body=st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_whatever_is_json_is_read_as_it_is(body: dict[str, Any], is_ascii: bool) -> None:
    raw = json.dumps(body, ensure_ascii=is_ascii).encode()
    assert parse_object(raw) == parse_object(b"\xef\xbb\xbf" + raw) == body


@given(raw=st.binary() | st.text('{}[]":,\\u19eE+-. nulltrfas', max_size=60).map(str.encode))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    with suppress(InvalidRequestError):
        assert isinstance(parse_object(raw), dict)


@given(text=st.text('[{":\\,a', max_size=12), times=st.integers(MAX_PARTS // 4, MAX_PARTS))
def test_brackets_inside_of_texts_are_counted_as_text(text: str, times: int) -> None:
    body = {"prompt": text * times}
    assert parse_object(json.dumps(body).encode()) == body


async def read_body(reader: BodyReader, raw: bytes, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    return await reader.read(Request(dict(COMPLETION_SCOPE), receive), "acme", check)


@pytest.mark.anyio
@pytest.mark.parametrize(("num_chars", "is_on_the_loop"), [(100, True), (100_000, False)])
async def test_a_large_body_is_parsed_and_checked_off_the_event_loop(num_chars: int, is_on_the_loop: bool) -> None:
    threads: list[threading.Thread] = []
    body = {"prompt": "x" * num_chars}
    reader = BodyReader(1 << 20, 1.0)
    read = await read_body(reader, json.dumps(body).encode(), lambda _: threads.append(threading.current_thread()))
    assert read == body
    assert [thread is threading.current_thread() for thread in threads] == [is_on_the_loop]


@pytest.mark.anyio
@pytest.mark.parametrize("num_chars", [100, 100_000])
async def test_a_check_that_refuses_is_the_answer(num_chars: int) -> None:
    def refuse(body: dict[str, Any]) -> None:
        raise InvalidRequestError("no such thing", param="prompt")

    with pytest.raises(InvalidRequestError, match="no such thing"):
        await read_body(BodyReader(1 << 20, 1.0), json.dumps({"prompt": "x" * num_chars}).encode(), refuse)


def keys_of(folder: Path, *grants: KeyGrant) -> tuple[KeyRing, dict[str, str]]:
    tokens = {grant.tenant: create_key(folder / "keys.json", grant, now=datetime.now(UTC)).token for grant in grants}
    return KeyRing(folder / "keys.json"), tokens


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": 7}', 400),
        (json.dumps(chat("nobody")).encode(), 404),
        (json.dumps(chat(n=1000)).encode(), 400),
        (b"x" * 600_000, 413),
    ],
)
async def test_a_refused_request_counts_against_its_key(
    tmp_path: Path, store: AdapterStore, base_folder: Path, content: bytes, status: int
) -> None:
    keys, tokens = keys_of(tmp_path, KeyGrant(tenant="slow", requests_per_minute=1))
    serving = make_serving(store, base_folder, keys=keys)
    async with serving.client(tokens["slow"]) as client:
        first = await client.post("/v1/chat/completions", content=content, headers=JSON)
        second = await client.post("/v1/chat/completions", content=content, headers=JSON)
    assert (first.status_code, second.status_code) == (status, 429)
    count = serving.metrics.registry.get_sample_value
    assert count("lorikeet_tenant_requests_total", {"tenant": "slow", "outcome": "client_error"}) == 2
    assert count("lorikeet_tenant_throttled_total", {"tenant": "slow", "reason": "requests"}) == 1


async def ask(
    serving: Serving, receive: Callable[[], Awaitable[dict[str, Any]]], token: str = "", path: str = "/v1/completions"
) -> tuple[int, dict[bytes, bytes]]:
    """The status and the headers of a request whose body `receive` hands out."""
    started: list[Message] = []
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"authorization", f"Bearer {token}".encode()),
    ]

    async def send(message: Message) -> None:
        started.extend([message] if message["type"] == "http.response.start" else [])

    await serving.app(COMPLETION_SCOPE | {"path": path, "headers": headers}, receive, send)
    return started[0]["status"], dict(started[0]["headers"])


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.anyio
async def test_over_its_limit_a_key_has_no_body_read(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    keys, tokens = keys_of(tmp_path, KeyGrant(tenant="slow", requests_per_minute=1))
    serving = make_serving(store, base_folder, keys=keys)
    async with serving.client(tokens["slow"]) as client:
        await client.post("/v1/completions", content=b"{", headers=JSON)

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    assert (await ask(serving, receive, tokens["slow"]))[0] == 429


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/admin/aliases/medical"])
async def test_a_body_that_does_not_come_is_a_408(store: AdapterStore, base_folder: Path, path: str) -> None:
    serving = make_serving(store, base_folder, body_timeout_s=0.05)
    status, headers = await ask(serving, never, path=path)
    assert (status, headers[b"connection"]) == (408, b"close")


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/completions", "/admin/aliases/medical"])
async def test_no_more_than_the_largest_body_is_read(store: AdapterStore, base_folder: Path, path: str) -> None:
    serving = make_serving(store, base_folder)
    num_bytes = 0

    async def receive() -> dict[str, Any]:
        nonlocal num_bytes
        num_bytes += 8192
        return {"type": "http.request", "body": b"x" * 8192, "more_body": True}

    assert (await ask(serving, receive, path=path))[0] == 413
    assert num_bytes <= (512 << 10) + 8192


@pytest.mark.anyio
async def test_slow_bodies_of_one_tenant_keep_no_other_out(
    tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    keys, tokens = keys_of(tmp_path, KeyGrant(tenant="slow"), KeyGrant(tenant="other"))
    serving = make_serving(store, base_folder, keys=keys, body_timeout_s=600)
    slow = [asyncio.create_task(ask(serving, never, tokens["slow"])) for _ in range(100)]
    await asyncio.sleep(0.01)
    async with serving.client(tokens["other"]) as client:
        answered = await client.post("/v1/chat/completions", json=chat())
    assert (answered.status_code, any(task.done() for task in slow)) == (200, False)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.anyio
async def test_bodies_that_wait_too_long_are_a_429_and_counted(
    tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    keys, tokens = keys_of(tmp_path, KeyGrant(tenant="slow"))
    serving = make_serving(store, base_folder, keys=keys, body_timeout_s=0.2)
    answers = await asyncio.gather(*(ask(serving, never, tokens["slow"]) for _ in range(100)))
    late = [headers for status, headers in answers if status == 429]
    assert {status for status, _ in answers} == {408, 429}
    assert {headers[b"retry-after"] for headers in late} == {b"5"}
    labels = {"tenant": "slow", "reason": "bodies"}
    assert serving.metrics.registry.get_sample_value("lorikeet_tenant_throttled_total", labels) == len(late)


@pytest.mark.anyio
async def test_latencies_start_when_the_body_is_there(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder)
    handed_out_s: list[float] = []

    async def receive() -> dict[str, Any]:
        if handed_out_s:
            return await never()
        await asyncio.sleep(0.05)
        handed_out_s.append(time.perf_counter())
        return {"type": "http.request", "body": json.dumps(chat()).encode(), "more_body": False}

    assert (await ask(serving, receive, path="/v1/chat/completions"))[0] == 200
    context = serving.finished.requests[0].context
    assert serving.engine.callers[0].started_s == context.started_s
    assert context.started_s >= handed_out_s[0]
    assert context.phases_s["body"] >= 0.05
    assert serving.metrics.registry.get_sample_value("lorikeet_body_seconds_count") == 1


@pytest.mark.anyio
async def test_the_next_place_is_for_the_tenant_that_holds_fewest() -> None:
    places, order = Places(2, 2), list[str]()

    async def hold(name: str, tenant: str) -> None:
        async with places.place(tenant, 60.0):
            order.append(name)
            await asyncio.sleep(0)

    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(places.place("a", 60.0))
        await second.enter_async_context(places.place("a", 60.0))
        tasks = [asyncio.create_task(hold(name, name[0])) for name in ("a1", "a2", "b1")]
        await asyncio.sleep(0)
        await second.aclose()
        await asyncio.gather(*tasks)
    assert order == ["b1", "a1", "a2"]


@pytest.mark.anyio
@pytest.mark.parametrize("leaves_first", [True, False])
async def test_a_place_that_nobody_waits_for_any_more_is_free(leaves_first: bool) -> None:
    places = Places(1, 1)

    async def hold() -> None:
        async with places.place("a", 60.0):
            await asyncio.sleep(0)

    held = AsyncExitStack()
    await held.enter_async_context(places.place("a", 60.0))
    leaving, staying = asyncio.create_task(hold()), asyncio.create_task(hold())
    await asyncio.sleep(0)
    # Both in one step of the event loop: neither task runs in between.
    giving = asyncio.create_task(held.aclose())
    (leaving.cancel if leaves_first else partial(asyncio.get_running_loop().call_soon, leaving.cancel))()
    await asyncio.gather(giving, leaving, staying, return_exceptions=True)
    assert (leaving.cancelled(), staying.exception()) == (True, None)
    await asyncio.wait_for(hold(), 1.0)
    assert (len(vars(places)["_held"]), len(vars(places)["_waiting"])) == (0, 0)


@pytest.mark.anyio
async def test_who_waits_too_long_for_a_place_is_told_when_to_come_back() -> None:
    places = Places(1, 1)
    async with places.place("a", 60.0):
        with pytest.raises(RateLimitedError, match="Too many request bodies") as refused:
            await places.place("b", 0.01).__aenter__()
    assert refused.value.retry_after_s > 0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30), st.integers(1, 4), st.integers(1, 3)
)
def test_places_are_never_more_than_there_are(comers: list[tuple[str, int]], most: int, most_of_tenant: int) -> None:
    places, held = Places(most, most_of_tenant), list[str]()

    async def come(tenant: str, num_steps: int) -> None:
        async with places.place(tenant, 60.0):
            held.append(tenant)
            assert len(held) <= most
            assert held.count(tenant) <= most_of_tenant
            for _ in range(num_steps):
                await asyncio.sleep(0)
            held.remove(tenant)

    async def all_come() -> None:
        await asyncio.wait_for(asyncio.gather(*(come(*comer) for comer in comers)), 60.0)

    asyncio.run(all_come())
    assert held == []
