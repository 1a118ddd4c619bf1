"""vLLM's streams as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError
from vllm.exceptions import GenerationError

from serve.engine.calls import EngineCall
from serve.errors import ServeError

_END = object()


async def server_sent_events(stream: AsyncGenerator[Any, None], call: EngineCall) -> AsyncGenerator[str, None]:
    """Pass chat and completion chunks on as they are; frame the events of the Responses API.

    Closing the iterator closes vLLM's stream, ends the generations that it has begun, and completes the call's result.

    Raises:
        ServeError: The engine ended the generation; vLLM's own word for it (an event, or an error) is left out.
    """
    async with aclosing(call.generations), aclosing(stream):
        try:
            while (event := await _next(stream, call)) is not _END:
                _raise_failure(call)
                if isinstance(event, str):
                    yield event
                else:
                    yield f"event: {event.type}\ndata: {event.model_dump_json(by_alias=True)}\n\n"
        # vLLM (0.32) cannot make its own error an event of the Responses API: that fails its validation.
        except (GenerationError, ValidationError) as error:
            _raise_failure(call)
            raise ServeError("The engine ended this answer with an error.") from error


async def _next(stream: AsyncGenerator[Any, None], call: EngineCall) -> Any:
    """The next event. The Responses API begins its generation here, in whichever task reads the stream."""
    with call.as_current():
        return await anext(stream, _END)


def _raise_failure(call: EngineCall) -> None:
    if call.failure is not None:
        raise call.failure
