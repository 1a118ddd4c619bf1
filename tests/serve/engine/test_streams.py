"""vLLM's streams as events, and what a stream ends with whose generation failed."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from pydantic import ValidationError
from vllm.exceptions import GenerationError

from serve.engine.streams import server_sent_events
from serve.errors import NotFiniteError, ServeError
from serve.records import RequestContext

pytestmark = pytest.mark.anyio


async def events(context: RequestContext | None, *pieces: Any) -> AsyncGenerator[Any, None]:
    """As vLLM's own: a piece that is an exception is raised."""
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece
        if context is not None and piece == "data: 2":
            context.failure = NotFiniteError("medical@3")


async def test_events_are_passed_on() -> None:
    passed = [event async for event in server_sent_events(events(None, "data: 1", "data: 2"), None)]
    assert passed == ["data: 1", "data: 2"]


@pytest.mark.parametrize(
    "told",
    ["data: vLLM's own word for it", GenerationError(), ValidationError.from_exception_data("Event", [])],
    ids=["an event", "an error", "no event"],
)
async def test_a_generation_that_failed_ends_the_stream_with_why(told: Any) -> None:
    context = RequestContext("acme", "r-1")
    stream = server_sent_events(events(context, "data: 1", "data: 2", told), context)
    assert [await anext(stream), await anext(stream)] == ["data: 1", "data: 2"]
    with pytest.raises(NotFiniteError, match="medical@3"):
        await anext(stream)


async def test_another_error_of_the_engine_is_no_traceback() -> None:
    stream = server_sent_events(events(None, GenerationError()), None)
    with pytest.raises(ServeError, match="ended this answer with an error"):
        await anext(stream)
