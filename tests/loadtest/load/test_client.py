"""One request becomes one record, whatever happens to it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import httpx
import pytest

from loadtest.load.client import Attempt, open_client
from loadtest.load.records import RequestRecord
from tests.planned import planned

pytestmark = pytest.mark.anyio

DONE = b"data: [DONE]\n\n"
STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def event(**fields: Any) -> bytes:
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "medical@3", "choices": []}
    return b"data: " + json.dumps(base | fields).encode() + b"\n\n"


def piece(finish_reason: str | None = None, **delta: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason}])


ROLE = piece(role="assistant", content="")
USAGE = event(usage={"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12})
ANSWER = (ROLE, piece(content="Hel"), piece(content="lo"), piece(content=""), piece("stop"), USAGE, DONE)


class Parts(httpx.AsyncByteStream):
    """A body that comes in pieces; an exception among them breaks it."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part


def streamed(*parts: bytes | Exception, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.Response(200, headers=STREAM | (headers or {}), stream=Parts(*parts))


async def ask(answer: Callable[[httpx.Request], httpx.Response], *, timeout_s: float = 5.0) -> RequestRecord:
    """One request; each look at the clock is a second later than the one before."""
    ticks = count()
    async with open_client("key", transport=httpx.MockTransport(answer)) as client:
        attempt = Attempt(planned(7), lambda: float(next(ticks)))
        return await attempt.run(client, "http://test/v1/chat/completions", timeout_s)


async def test_pieces_of_text_are_timed_and_tokens_counted() -> None:
    record = await ask(lambda _: streamed(*ANSWER, headers={"x-lorikeet-cold": "1"}))
    assert record.is_ok
    assert (record.index, record.model, record.served_by, record.is_cold) == (7, "medical", "medical@3", True)
    assert record.sent_s == 0.0
    assert record.chunk_times_s == (2.0, 3.0, 4.0)  # the role, at 1, and the end, at 5, are no text
    assert (record.num_prompt_tokens, record.num_completion_tokens, record.status) == (9, 3, 200)
    assert record.ended_s > record.chunk_times_s[-1]


async def test_the_request_carries_its_body_its_key_and_its_number() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return streamed(*ANSWER)

    await ask(answer)
    assert seen[0].content == planned(7).body
    assert (seen[0].headers["authorization"], seen[0].headers["x-request-id"]) == ("Bearer key", "load-7")


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
async def test_events_may_be_cut_anywhere(size: int) -> None:
    whole = b"".join(ANSWER)
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    record = await ask(lambda _: streamed(*parts))
    assert (record.error, len(record.chunk_times_s), record.num_completion_tokens) == (None, 3, 3)


async def test_comments_other_fields_and_windows_line_ends_are_read_over() -> None:
    whole = b": ping\r\n\r\nevent: chunk\r\n" + b"".join(ANSWER).replace(b"\n", b"\r\n")
    assert (await ask(lambda _: streamed(whole))).is_ok


async def test_a_token_of_which_only_the_number_comes_is_timed() -> None:
    unseen = b'data: {"choices": [{"delta": {}, "token_ids": [2]}]}\n\n'
    record = await ask(lambda _: streamed(ROLE, piece(content="a"), unseen, unseen, DONE))
    assert len(record.chunk_times_s) == 3


async def test_without_counts_from_the_server_pieces_are_counted() -> None:
    record = await ask(lambda _: streamed(piece(content="a"), piece(content="b"), DONE))
    assert (record.num_completion_tokens, record.num_prompt_tokens, record.is_cold) == (2, None, None)


@pytest.mark.parametrize("delta", [{"tool_calls": [{"index": 0}]}, {"reasoning_content": "Hm"}, {"content": "x"}])
async def test_calls_of_tools_and_reasoning_are_pieces_too(delta: dict[str, Any]) -> None:
    record = await ask(lambda _: streamed(piece(role="assistant", **delta), DONE))
    assert len(record.chunk_times_s) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, "throttled"), (404, "client_error"), (400, "client_error"), (500, "server_error"), (503, "server_error")],
)
async def test_a_status_is_an_error_of_its_kind_with_the_servers_message(status: int, kind: str) -> None:
    body = {"error": {"message": "The model 'medical' does not exist."}}
    record = await ask(lambda _: httpx.Response(status, json=body))
    assert (record.status, record.error) == (status, kind)
    assert record.error_message == f"{status}: The model 'medical' does not exist."


async def test_an_error_that_is_no_json_is_shown_by_its_beginning() -> None:
    record = await ask(lambda _: httpx.Response(502, text="<html>Bad gateway" + "x" * 10_000))
    assert record.error == "server_error"
    assert record.error_message is not None
    assert record.error_message.startswith("502: <html>Bad gateway")
    assert len(record.error_message) == 300


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ((ROLE, piece(content="a")), "broken_stream", r"before `data: \[DONE\]`"),
        ((piece(content="a"), httpx.ReadError("reset")), "broken_stream", "ReadError: reset"),
        ((piece(content="a"), b"data: {oops\n\n"), "broken_stream", "Not a completion chunk"),
        ((piece(content="a"), b'data: ["oops"]\n\n'), "broken_stream", "Not a completion chunk"),
        (
            (event(error={"message": "Out of memory", "code": 500}), DONE),
            "server_error",
            "In the stream: Out of memory",
        ),
        ((event(error={"message": "Too long", "code": 400}), DONE), "client_error", "In the stream: Too long"),
        ((event(error="gone"), DONE), "server_error", "In the stream: gone"),
    ],
)
async def test_a_stream_that_breaks_is_an_error_of_its_kind(
    parts: tuple[bytes | Exception, ...], kind: str, message: str
) -> None:
    record = await ask(lambda _: streamed(*parts))
    assert (record.status, record.error) == (200, kind)
    assert re.search(message, record.error_message or "")


async def test_what_came_before_the_break_is_kept() -> None:
    record = await ask(lambda _: streamed(piece(content="a"), httpx.ReadError("reset")))
    assert len(record.chunk_times_s) == 1


async def test_an_answer_that_is_no_stream_is_broken() -> None:
    record = await ask(lambda _: httpx.Response(200, json={"choices": []}))
    assert record.error == "broken_stream"
    assert record.error_message == "Got content type 'application/json', wanted text/event-stream."


async def test_no_connection_is_an_error_of_its_kind() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    record = await ask(refuse)
    assert (record.status, record.error, record.error_message) == (None, "connection", "ConnectError: refused")


async def test_a_server_that_never_answers_times_out() -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async with open_client(transport=httpx.MockTransport(never)) as client:
        record = await Attempt(planned(), lambda: 0.0).run(client, "http://test/v1/chat/completions", 0.01)
    assert (record.error, record.error_message) == ("timeout", "No complete answer within 0.01 s.")
