"""vLLM's streams as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError
from vllm.exceptions import GenerationError

from serve.errors import ServeError
from serve.records import RequestContext


async def server_sent_events(
    stream: AsyncGenerator[Any, None], context: RequestContext | None
) -> AsyncGenerator[str, None]:
    """Pass chat and completion chunks on as they are; frame the events of the Responses API.

    Closing the iterator closes vLLM's stream, which frees the request's work at once.

    Args:
        context: Of the request, which knows why its generation failed.

    Raises:
        ServeError: The engine ended the generation; vLLM's own word for it (an event, or an error) is left out.
    """
    async with aclosing(stream):
        try:
            async for event in stream:
                _raise_failure(context)
                if isinstance(event, str):
                    yield event
                else:
                    yield f"event: {event.type}\ndata: {event.model_dump_json(by_alias=True)}\n\n"
        # vLLM (0.32) cannot make its own error an event of the Responses API: that fails its validation.
        except (GenerationError, ValidationError) as error:
            _raise_failure(context)
            raise ServeError("The engine ended this answer with an error.") from error


def _raise_failure(context: RequestContext | None) -> None:
    if context is not None and context.failure is not None:
        raise context.failure
