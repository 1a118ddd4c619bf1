"""Connections of the HTTP server: their number is bounded, and a client must send a request's headers in time."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from serve.api.responses import error_response
from serve.errors import NotReadyError

HEADERS_TIMEOUT_S = 10.0


class TimedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen at run time, by what is installed
    """Uvicorn's own connection; it is closed where no request begins within `HEADERS_TIMEOUT_S` of its first bytes.

    Uvicorn waits for headers without end. What comes of a body after its answer counts as headers that do not. Beyond
    `max_connections` a new one is answered with a 503 and closed: uvicorn's own `limit_concurrency` refuses requests,
    also those on connections that were there before, and leaves the connections open.
    """

    headers_timeout_s = HEADERS_TIMEOUT_S
    max_connections: int | None = None
    _deadline: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: Any) -> None:
        if self.max_connections is not None and len(self.connections) >= self.max_connections:
            self._is_refused = True
            transport.write(_refusal(self.max_connections))
            transport.close()
            return
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


def bounded_connections(max_connections: int) -> type[TimedConnection]:
    """`http` of uvicorn's configuration, for a server with at most so many connections."""
    return type("BoundedConnection", (TimedConnection,), {"max_connections": max_connections})


def _refusal(max_connections: int) -> bytes:
    """A whole answer, as bytes: uvicorn has not begun with this connection."""
    answer = error_response(
        NotReadyError(f"The server has {max_connections} connections open, its maximum. Retry in a few seconds."),
        {"connection": "close"},
    )
    lines = [b"HTTP/1.1 503 Service Unavailable", *(name + b": " + value for name, value in answer.raw_headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(answer.body)
