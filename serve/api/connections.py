"""Connections of the HTTP server: their number is bounded, and a client must send a request's headers in time."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from serve.api.responses import error_response
from serve.errors import NotReadyError

HEADERS_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 75
"""How long a connection without a request stays open: longer than clients and proxies keep theirs (httpx 5 s, aiohttp
15 s, nginx 60 s), so that none sends a request into a connection that is being closed."""
OPERATORS_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""What is answered beyond `max_connections`, too: a busy server must not look like a dead one."""
RESERVED_CONNECTIONS = 16


class TimedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen at run time, by what is installed
    """Uvicorn's own connection; it is closed where no request begins within `HEADERS_TIMEOUT_S` of its first bytes.

    Uvicorn waits for headers without end. What comes of a body after its answer counts as headers that do not. Beyond
    `max_connections` a new one replaces the connection that has been idle for longest. If none is idle, it gets one
    answer and is closed: that of `OPERATORS_PATHS`, or a 503. Beyond the reserve it gets a 503 at once.
    Uvicorn's own `limit_concurrency` refuses requests, also those on connections that were there before, and leaves
    the connections open.
    """

    app: ASGIApp  # uvicorn's
    headers_timeout_s = HEADERS_TIMEOUT_S
    max_connections: int | None = None
    refused: Callable[[], None] = staticmethod(lambda: None)
    _deadline: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: Any) -> None:
        beyond = 0 if self.max_connections is None else len(self.connections) - self.max_connections + 1
        if beyond > 0 and self._close_longest_idle():
            beyond = 0
        if beyond > RESERVED_CONNECTIONS:
            self._is_refused = True
            self.refused()
            transport.write(_as_bytes(self._refusal()))
            transport.close()
            return
        if beyond > 0:
            self.app = self._answered_once(self.app)
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_refused:
            return
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if not self._waits_for_headers():
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.headers_timeout_s, self._end)

    def _waits_for_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        self._deadline = None
        if self._waits_for_headers():
            self.transport.close()

    def _close_longest_idle(self) -> bool:
        """Close the connection that has been idle for longest; False if none is idle."""
        idle = [one for one in self.connections if one.timeout_keep_alive_task and not one.transport.is_closing()]
        if not idle:
            return False
        min(idle, key=lambda one: one.timeout_keep_alive_task.when()).transport.close()
        return True

    def _answered_once(self, app: ASGIApp) -> ASGIApp:
        """The application of a connection of the reserve."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_last(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)["connection"] = "close"
                await send(message)

            if scope["type"] == "http" and scope["path"] in OPERATORS_PATHS:
                await app(scope, receive, send_last)
            else:
                self.refused()
                await self._refusal()(scope, receive, send)

        return answer

    def _refusal(self) -> Response:
        error = NotReadyError(
            f"The server has {self.max_connections} connections open, its maximum. Retry in a few seconds."
        )
        return error_response(error, {"connection": "close"})


def bounded_connections(max_connections: int, refused: Callable[[], None]) -> type[TimedConnection]:
    """`http` of uvicorn's configuration, for a server with at most so many connections.

    Args:
        refused: Called for each connection that gets a 503.
    """
    bounds = {"max_connections": max_connections, "refused": staticmethod(refused)}
    return type("BoundedConnection", (TimedConnection,), bounds)


def _as_bytes(answer: Response) -> bytes:
    """A whole answer, for a connection that uvicorn has not begun with."""
    lines = [b"HTTP/1.1 503 Service Unavailable", *(name + b": " + value for name, value in answer.raw_headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(answer.body)
