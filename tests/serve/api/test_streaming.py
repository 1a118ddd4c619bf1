"""Streams and their readers: the engine waits for nobody, and what it made is charged whoever reads it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.access.tenants import TenantLimits
from serve.api.streaming import Backlog, LeasedStream
from serve.engine.generations import OpenGenerations
from serve.engine.protocol import Answer, Endpoint
from serve.records import Caller, RequestResult
from tests.serving import COMPLETION_SCOPE, Serving, make_serving

pytestmark = pytest.mark.anyio

NUM_EVENTS, NUM_READ, NUM_TOKENS = 300, 100, 700

Send = Callable[[Message], Awaitable[None]]


class Reader:
    """An ASGI client that reads `num_read` messages, then nothing until `goes_on`; it leaves when `left` is set."""

    def __init__(self, body: Message, num_read: int) -> None:
        self._parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        self._num_read = num_read
        self.left = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self._parts:
            return self._parts.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if len(self.sent) > self._num_read:
            await self.goes_on.wait()


class Case:
    """A server with one key, whose engine makes `NUM_EVENTS` events and says when it has stopped."""

    def __init__(self, serving: Serving, token: str) -> None:
        self.serving = serving
        self.token = token
        self.stopped = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.charged: list[tuple[int, bool]] = []
        limits = serving.parts.completions._gate.tenants
        assert isinstance(limits, TenantLimits)
        debit = limits.debit

        def watched(key: Any, num_tokens: int) -> None:
            self.charged.append((num_tokens, self.stopped.is_set()))
            debit(key, num_tokens)

        limits.debit = watched  # type: ignore[method-assign]  # to watch it
        serving.engine.answer = self._answer  # type: ignore[method-assign, assignment]  # the fake is made to be slow

    async def _answer(self, endpoint: Endpoint, body: Message, caller: Caller, result: RequestResult) -> Answer:
        return Answer(self._events(result))

    async def _events(self, result: RequestResult) -> AsyncGenerator[str, None]:
        try:
            for number in range(NUM_EVENTS):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0)
            await self.may_end.wait()
        finally:
            await asyncio.sleep(0.01)  # an abort takes its time
            self.stopped.set()
            result.num_tokens += NUM_TOKENS

    def ask(self, reader: Reader) -> "asyncio.Task[None]":
        headers = [*COMPLETION_SCOPE["headers"], (b"authorization", f"Bearer {self.token}".encode())]
        scope = COMPLETION_SCOPE | {"headers": headers, "asgi": {"spec_version": "2.3", "version": "3.0"}}
        return asyncio.create_task(self.serving.app(scope, reader.receive, reader.send))

    @property
    def num_running(self) -> int:
        return sum(self.serving.parts.completions._gate.admission.running_by_tenant().values())


@pytest.fixture
def case(store: AdapterStore, base_folder: Path, tmp_path: Path) -> Case:
    token = create_key(tmp_path / "keys.json", KeyGrant(tenant="acme"), now=datetime.now(UTC)).token
    keys = KeyRing(tmp_path / "keys.json")
    serving = make_serving(store, base_folder, keys=keys, request_timeout_s=0.4, max_num_seqs=1)
    serving.publish("medical")
    return Case(serving, token)


BODY = {"model": "medical", "messages": [], "stream": True}


async def test_a_reader_that_reads_gets_every_event(case: Case) -> None:
    reader = Reader(BODY, num_read=10**6)
    await case.ask(reader)
    events = b"".join(message.get("body", b"") for message in reader.sent).decode()
    assert events == "".join(f"data: {number}\n\n" for number in range(NUM_EVENTS))
    assert case.charged == [(NUM_TOKENS, True)]


@pytest.mark.slow
async def test_the_places_of_a_stalled_stream_are_free_once_the_engine_has_ended(case: Case) -> None:
    stalled = case.ask(Reader(BODY, NUM_READ))
    await case.stopped.wait()
    case.stopped.clear()
    await case.ask(Reader(BODY, num_read=10**6))  # one place: it would wait for the stalled one's
    assert not stalled.done()
    assert case.charged == [(NUM_TOKENS, True)] * 2
    await stalled


@pytest.mark.slow
async def test_a_stalled_reader_is_left_at_the_deadline(case: Case) -> None:
    reader = Reader(BODY, NUM_READ)
    async with asyncio.timeout(5):
        await case.ask(reader)
    assert len(reader.sent) == NUM_READ + 1


async def test_a_reader_that_leaves_is_charged_and_the_engine_has_stopped(case: Case) -> None:
    case.may_end.clear()
    reader = Reader(BODY, NUM_READ)
    asking = case.ask(reader)
    while len(reader.sent) <= NUM_READ:
        await asyncio.sleep(0)
    assert case.num_running == 1
    reader.left.set()
    await asking
    assert (case.charged, case.num_running) == ([(NUM_TOKENS, True)], 0)


@pytest.mark.slow
async def test_an_engine_that_goes_on_past_the_deadline_is_stopped(case: Case) -> None:
    case.may_end.clear()
    reader = Reader(BODY, num_read=10**6)
    await case.ask(reader)
    assert b"deadline_exceeded" in b"".join(message.get("body", b"") for message in reader.sent)
    assert (case.charged, case.num_running) == ([(NUM_TOKENS, True)], 0)


async def no_end(size: int) -> AsyncGenerator[str, None]:
    while True:
        yield "x" * size
        await asyncio.sleep(0)


def holding(events: AsyncGenerator[str, None], backlog: Backlog, timeout_s: float = 5) -> LeasedStream:
    deadline = asyncio.get_running_loop().time() + timeout_s
    return LeasedStream(events, {}, AsyncExitStack(), deadline, backlog)


async def test_of_too_much_unread_the_reader_furthest_behind_is_cut_off() -> None:
    backlog = Backlog(max_bytes=10_000)
    reader, other = Reader({}, NUM_READ), Reader({}, num_read=10)
    scope = COMPLETION_SCOPE | {"asgi": {"spec_version": "2.3", "version": "3.0"}}
    slow = holding(no_end(100), backlog)
    sending = asyncio.create_task(slow(scope, reader.receive, reader.send))
    quick = asyncio.create_task(holding(one_event(), backlog)(scope, other.receive, other.send))
    await quick
    while slow._pump is None or not slow._pump.done():
        assert slow.num_unread_bytes <= 10_000
        await asyncio.sleep(0)
    assert slow.num_unread_bytes < 300  # the error alone, should it read on
    reader.goes_on.set()
    await sending
    assert b"was not read in time" in reader.sent[-2]["body"]
    assert (backlog._num_bytes, backlog._streams) == (0, set())


async def one_event() -> AsyncGenerator[str, None]:
    yield "data: 1\n\n"


async def test_an_error_of_the_engine_ends_the_stream_with_it() -> None:
    reader = Reader({}, num_read=99)
    scope = COMPLETION_SCOPE | {"asgi": {"spec_version": "2.4", "version": "3.0"}}
    with pytest.raises(ZeroDivisionError):
        await holding(broken(), Backlog())(scope, reader.receive, reader.send)
    assert b"data: 1\n\n" in [message.get("body") for message in reader.sent]


async def broken() -> AsyncGenerator[str, None]:
    yield "data: 1\n\n"
    _ = 1 / 0


async def test_generations_that_another_task_reads_have_ended_before_the_request_goes_on() -> None:
    """As vLLM reads several prompts: it cancels its tasks, and does not wait for them."""
    generations, has_stopped = OpenGenerations(), False

    async def generation() -> AsyncGenerator[int, None]:
        nonlocal has_stopped
        with generations.running():
            try:
                await asyncio.Event().wait()
                yield 1
            finally:
                await asyncio.sleep(0.01)
                has_stopped = True

    generated = generation()
    generations.add(generated)
    reading = asyncio.ensure_future(anext(generated))
    await asyncio.sleep(0)
    reading.cancel()
    await generations.aclose()
    assert has_stopped
