"""vLLM's streams as events, and what a stream ends with whose generation failed."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from pydantic import ValidationError
from vllm.exceptions import GenerationError

from serve.engine.calls import EngineCall, current_call
from serve.engine.streams import server_sent_events
from serve.errors import NotFiniteError, ServeError
from serve.records import Caller, RequestResult

pytestmark = pytest.mark.anyio


def call_of(tenant: str = "acme") -> EngineCall:
    return EngineCall(Caller("client", tenant, "r-1"), RequestResult())


async def events(call: EngineCall, *pieces: Any) -> AsyncGenerator[Any, None]:
    """As vLLM's own: a piece that is an exception is raised."""
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece
        if piece == "data: 2" and len(pieces) > 2:
            call.failure = NotFiniteError("medical@3")


async def test_events_are_passed_on() -> None:
    passed = [event async for event in server_sent_events(events(call_of(), "data: 1", "data: 2"), call_of())]
    assert passed == ["data: 1", "data: 2"]


@pytest.mark.parametrize(
    "told",
    ["data: vLLM's own word for it", GenerationError(), ValidationError.from_exception_data("Event", [])],
    ids=["an event", "an error", "no event"],
)
async def test_a_generation_that_failed_ends_the_stream_with_why(told: Any) -> None:
    call = call_of()
    stream = server_sent_events(events(call, "data: 1", "data: 2", told), call)
    assert [await anext(stream), await anext(stream)] == ["data: 1", "data: 2"]
    with pytest.raises(NotFiniteError, match="medical@3"):
        await anext(stream)


async def test_another_error_of_the_engine_is_no_traceback() -> None:
    stream = server_sent_events(events(call_of(), GenerationError()), call_of())
    with pytest.raises(ServeError, match="ended this answer with an error"):
        await anext(stream)


async def test_a_generation_that_begins_while_a_stream_is_read_is_its_requests() -> None:
    """As in the Responses API; two streams are read in turn, by one task."""

    async def begun() -> AsyncGenerator[str, None]:
        while True:
            yield f"data: {current_call().caller.tenant}"

    streams = [server_sent_events(begun(), call_of(tenant)) for tenant in ("a", "b")]
    assert [await anext(stream) for stream in (*streams, *streams)] == ["data: a", "data: b"] * 2
    assert current_call().caller.tenant is None
    for stream in streams:
        await stream.aclose()


async def test_a_stream_that_is_closed_ends_its_generations() -> None:
    call, has_stopped = call_of(), False

    async def generation() -> AsyncGenerator[int, None]:
        nonlocal has_stopped
        with call.generations.running():
            try:
                yield 1
            finally:
                has_stopped = True

    generated = generation()
    call.generations.add(generated)
    await anext(generated)
    stream = server_sent_events(events(call, "data: 1"), call)
    await anext(stream)
    await stream.aclose()
    assert has_stopped
