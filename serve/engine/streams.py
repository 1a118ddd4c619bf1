"""vLLM's streams as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any


async def server_sent_events(stream: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
    """Pass chat and completion chunks on as they are; frame the events of the Responses API.

    Closing the iterator closes vLLM's stream, which frees the request's work at once.
    """
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, str):
                yield event
            else:
                yield f"event: {event.type}\ndata: {event.model_dump_json(by_alias=True)}\n\n"
