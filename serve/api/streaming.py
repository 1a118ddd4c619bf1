"""Streaming responses that buffer unread events up to a limit, so a slow reader never blocks the engine."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.api.responses import error_event
from serve.errors import DeadlineError

logger = logging.getLogger(__name__)

_MAX_UNREAD_BYTES = 64 << 20
_ERROR_EVENT_TIMEOUT_S = 1.0
"""Time after the request's deadline to send the error event."""


class Backlog:
    """Unread bytes of all streams; above `max_bytes` the stream with most unread bytes is aborted."""

    def __init__(self, max_bytes: int = _MAX_UNREAD_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._streams: set[LeasedStream] = set()

    def add(self, stream: "LeasedStream", num_bytes: int) -> None:
        self._streams.add(stream)
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            max(self._streams, key=lambda each: each.num_unread_bytes).cut()

    def remove(self, stream: "LeasedStream", num_bytes: int) -> None:
        self._num_bytes -= num_bytes
        if not stream.num_unread_bytes:
            self._streams.discard(stream)


class LeasedStream(StreamingResponse):
    """A stream that releases its request's resources when generation ends, even if the client reads slowly.

    Args:
        events: The engine's; read as fast as they come, and closed before anything is given back.
        held: What the request holds; given back also when the stream never begins.
        deadline: Of the event loop's clock. A reader that has not read all of it a second later is left.
    """

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        headers: dict[str, str],
        held: AsyncExitStack,
        deadline: float,
        backlog: Backlog,
    ) -> None:
        super().__init__(self._read(), media_type="text/event-stream", headers=headers)
        self.num_unread_bytes = 0
        self._events = events
        self._held = held
        self._deadline = deadline
        self._backlog = backlog
        self._unread: deque[str] = deque()
        self._changed = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._pump = asyncio.create_task(self._read_events())
        try:
            async with asyncio.timeout_at(self._deadline + _ERROR_EVENT_TIMEOUT_S):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.info("A client left %d bytes of a stream unread until its deadline", self.num_unread_bytes)
        finally:
            self._pump.cancel()
            await asyncio.wait([self._pump])  # a second cancellation does not stop it from giving back
            self._discard_unread()
            await self._events.aclose()  # where the first cancellation came before it began
            await self._held.aclose()

    def cut(self) -> None:
        """Abort the stream because its reader is too slow; the reader gets an error event."""
        logger.warning("A stream was aborted: its reader is %d bytes behind", self.num_unread_bytes)
        self._discard_unread()
        if self._pump is not None:
            self._pump.cancel()
        self._buffer(error_event(DeadlineError("The stream was not read in time and was aborted.")))

    async def _read_events(self) -> None:
        try:
            async with self._held, aclosing(self._events):
                async for event in self._events:
                    self._buffer(event)
        finally:
            self._changed.set()

    async def _read(self) -> AsyncGenerator[str, None]:
        pump = self._pump
        assert pump is not None
        while self._unread or not pump.done():
            if not self._unread:
                self._changed.clear()
                await self._changed.wait()
                continue
            event = self._unread.popleft()
            self._count_read(len(event))
            yield event
        if not pump.cancelled() and (error := pump.exception()) is not None:
            raise error

    def _buffer(self, event: str) -> None:
        self._unread.append(event)
        self.num_unread_bytes += len(event)
        self._changed.set()
        self._backlog.add(self, len(event))

    def _count_read(self, num_bytes: int) -> None:
        self.num_unread_bytes -= num_bytes
        self._backlog.remove(self, num_bytes)

    def _discard_unread(self) -> None:
        self._unread.clear()
        self._count_read(self.num_unread_bytes)
