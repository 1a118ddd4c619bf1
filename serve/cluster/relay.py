"""ASGI between two processes: an application's answer as batches of messages, and such batches as a response."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Batch = list[dict[str, Any]]

_SENT_ON = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)


def portable_scope(scope: Scope) -> dict[str, Any]:
    """What of a request's scope another process can use."""
    return {key: scope[key] for key in _SENT_ON if key in scope} | {"asgi": {"version": "3.0"}}


async def answer_batches(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[Batch, None]:
    """An application's messages; what it sends while the caller is busy is one batch.

    Closing the generator, or cancelling its task, is what a client's disconnect is to the application.
    """
    sent: Batch = []
    something, gone = asyncio.Event(), asyncio.Event()
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(dict(message))
        something.set()

    running = asyncio.ensure_future(app(scope, receive, send))
    running.add_done_callback(lambda _: something.set())
    try:
        while sent or not running.done():
            await something.wait()
            something.clear()
            if sent:
                batch, sent[:] = sent[:], []
                yield batch
        await running
    finally:
        gone.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def is_opening(batch: Batch) -> bool:
    """Whether these first messages of a streamed chat answer hold no token: its first chunk only names the role."""
    bodies = [message for message in batch[1:] if message.get("body")]
    is_stream = any(name.lower() == b"content-type" and b"event-stream" in value for name, value in batch[0]["headers"])
    is_over = any(not message.get("more_body", False) for message in batch[1:])
    return is_stream and not is_over and all(b'"role":"assistant"' in bytes(each["body"]) for each in bodies)


class RelayedResponse(Response):
    """Sends messages that another process made."""

    def __init__(self, first: Batch, rest: AsyncIterator[Batch]) -> None:
        super().__init__()
        self.status_code = first[0]["status"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async for message in self.messages():
            await send(message)

    async def messages(self) -> AsyncIterator[Message]:
        for message in _without_id(self._first):
            yield message
        async for batch in self._rest:
            for message in batch:
                yield message


def _without_id(batch: Batch) -> Batch:
    """Ray's proxy adds `x-request-id` itself: the one that it has passed on."""
    start, *others = batch
    headers = [(name, value) for name, value in start["headers"] if bytes(name).lower() != b"x-request-id"]
    return [start | {"headers": headers}, *others]


async def body_of(response: RelayedResponse) -> bytes:
    """The whole body; the response is used up."""
    return b"".join([bytes(message.get("body", b"")) async for message in response.messages()])
