"""Connections of the HTTP server: a client that opens one must send a whole request's headers in time."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADERS_TIMEOUT_S = 10.0


class TimedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen at run time, by what is installed
    """Uvicorn's own connection; it is closed where no request begins within `HEADERS_TIMEOUT_S` of its first bytes.

    Uvicorn waits for headers without end. What comes of a body after its answer counts as headers that do not.
    """

    headers_timeout_s = HEADERS_TIMEOUT_S
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
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
