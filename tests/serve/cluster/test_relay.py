"""ASGI messages between processes."""

import asyncio
from contextlib import aclosing

import pytest

from serve.cluster.relay import RelayedResponse, answer_batches, is_opening, portable_scope

pytestmark = pytest.mark.anyio

START = {"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"1"), (b"a", b"b")]}


def piece(body, *, more=True):
    return {"type": "http.response.body", "body": body, "more_body": more}


async def test_an_applications_messages_come_as_it_sends_them():
    go_on = asyncio.Event()

    async def app(scope, receive, send):
        assert (await receive())["body"] == b"asked"
        await send(START)
        await send(piece(b"1"))
        await go_on.wait()
        await send(piece(b"2", more=False))

    batches = answer_batches(app, {}, b"asked")
    assert await anext(batches) == [START, piece(b"1")]
    go_on.set()
    assert [batch async for batch in batches] == [[piece(b"2", more=False)]]


async def test_an_applications_error_is_the_callers():
    async def app(scope, receive, send):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await anext(answer_batches(app, {}, b""))


async def test_closing_is_a_disconnect():
    left = []

    async def app(scope, receive, send):
        await receive()
        await send(START)
        try:
            left.append(await receive())
        except asyncio.CancelledError:
            left.append("cancelled")
            raise

    async with aclosing(answer_batches(app, {}, b"")) as batches:
        await anext(batches)
    assert len(left) == 1


async def test_a_relayed_response_has_one_request_id():
    sent = []

    async def rest():
        yield [piece(b"x", more=False)]

    async def receive():
        raise AssertionError("nobody asks")

    async def send(message):
        sent.append(message)

    await RelayedResponse([START], rest())({}, receive, send)
    assert sent == [START | {"headers": [(b"a", b"b")]}, piece(b"x", more=False)]


def test_a_scope_leaves_behind_what_is_of_one_process():
    scope = {"type": "http", "path": "/v1/models", "app": object(), "headers": []}
    assert portable_scope(scope) == {
        "type": "http",
        "path": "/v1/models",
        "headers": [],
        "asgi": {"version": "3.0"},
    }


STREAM_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
ROLE = {"type": "http.response.body", "body": b'data: {"delta":{"role":"assistant","content":""}}', "more_body": True}
TOKEN = {"type": "http.response.body", "body": b'data: {"delta":{"content":"a"}}', "more_body": True}
END = {"type": "http.response.body", "body": b"", "more_body": False}
JSON_START = STREAM_START | {"headers": [(b"content-type", b"application/json")]}


@pytest.mark.parametrize(
    ("batch", "is_held"),
    [
        ([STREAM_START], True),
        ([STREAM_START, ROLE], True),
        ([STREAM_START, ROLE, TOKEN], False),
        ([STREAM_START, TOKEN], False),
        ([STREAM_START, ROLE, END], False),
        ([JSON_START], False),
    ],
)
async def test_an_answer_is_held_back_until_its_first_token(batch, is_held):
    assert is_opening(batch) is is_held
