"""Request bodies: limits on their size, the time to read one, and the number read at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import jiter
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import BodyTimeoutError, BodyTooLargeError, InvalidRequestError, RateLimitedError

MAX_AT_ONCE = 64
MAX_OF_TENANT = 16
"""Bodies that are read at once, of all tenants and of one."""

MAX_PARTS = 32_768
"""Objects, lists and members of objects in a body: to make one costs more than to read 50 letters. What `limits` allows
needs fewer; texts and numbers in lists are not counted."""

_INLINE_BYTES = 8192
"""A larger body is parsed and checked in a thread: at this size the costliest takes some 6 ms, a chat 0.1 ms."""

_KEPT_OPEN_BYTES = 65_536
_THROW_AWAY_BYTES = 8 << 20
_THROW_AWAY_S = 1.0
_RETRY_AFTER_S = 5.0
_BOM = b"\xef\xbb\xbf"
_MAX_ERROR_CHARS = 120

Check = Callable[[dict[str, Any]], None]


def unchecked(body: dict[str, Any]) -> None:
    """No check: the caller validates the body itself."""


class BodyReader:
    """Reads the JSON objects that clients send.

    Args:
        max_bytes: Largest body.
        timeout_s: Longest wait for a place to read in, and then longest time until the body is there.
    """

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._places = Places(MAX_AT_ONCE, MAX_OF_TENANT)
        # One thread: parsing holds the interpreter's lock, so more of them would only hold up the event loop.
        self._thread = ThreadPoolExecutor(1, "bodies")

    async def read(
        self, request: Request, tenant: str, check: Check = unchecked, *, max_bytes: int | None = None
    ) -> dict[str, Any]:
        """The JSON object of a request. One that is too large is not read to its end.

        Args:
            check: Raises for an object that must be refused; runs where the body is parsed, so off the event loop for
                a large one.
            max_bytes: Instead of the reader's own.

        Raises:
            BodyTooLargeError: By its `content-length`, or by what came.
            BodyTimeoutError: It was not there in time.
            RateLimitedError: Too many others are being read.
            InvalidRequestError: No JSON, or no object.
        """
        most = max_bytes or self._max_bytes
        _check_length(request, most)
        async with self._places.place(tenant, self._timeout_s):
            raw = await self._receive(request, most)

            def parse() -> dict[str, Any]:
                body = parse_object(raw)
                check(body)
                return body

            if len(raw) <= _INLINE_BYTES:
                return parse()
            return await asyncio.get_running_loop().run_in_executor(self._thread, parse)

    async def _receive(self, request: Request, most: int) -> bytes:
        received = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for piece in request.stream():
                    received += piece
                    if len(received) > most:
                        raise BodyTooLargeError(f"at least {len(received)}", most)
        except TimeoutError:
            raise BodyTimeoutError(
                f"The request body was not complete after {self._timeout_s:g} s; {len(received)} bytes were "
                "received. Send it faster."
            ) from None
        return bytes(received)


class Places:
    """A semaphore with a limit per tenant; the tenant that holds fewest goes next."""

    def __init__(self, most: int, most_of_tenant: int) -> None:
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._held: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], str] = {}

    @asynccontextmanager
    async def place(self, tenant: str, timeout_s: float) -> AsyncIterator[None]:
        if self._fits(tenant):
            self._held[tenant] += 1
        else:
            await self._wait(tenant, timeout_s)
        try:
            yield
        finally:
            self._give(tenant)

    def _fits(self, tenant: str) -> bool:
        return self._held.total() < self._most and self._held[tenant] < self._most_of_tenant

    async def _wait(self, tenant: str, timeout_s: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = tenant
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException as error:
            self._waiting.pop(turn, None)
            if turn.done() and not turn.cancelled():  # it came together with the end of the wait
                self._give(tenant)
            if not isinstance(error, TimeoutError):
                raise
            raise RateLimitedError(
                f"Too many request bodies are being sent to this server: this one waited {timeout_s:g} s to be read.",
                _RETRY_AFTER_S,
                "bodies",
            ) from None

    def _give(self, tenant: str) -> None:
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        waiting = [turn for turn, waits in self._waiting.items() if self._fits(waits) and not turn.done()]
        if waiting:
            turn = min(waiting, key=lambda turn: self._held[self._waiting[turn]])
            self._held[self._waiting.pop(turn)] += 1
            turn.set_result(None)


class CloseUnread:
    """ASGI middleware: an answer that comes before a large body was read ends the connection.

    What is on its way is thrown away for a moment: a connection that is closed at once is reset, and the client may
    lose the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _may_be_large(scope):
            await self._app(scope, receive, send)
            return
        is_read = closes = False

        async def watched_receive() -> Message:
            nonlocal is_read
            message = await receive()
            is_read |= message["type"] == "http.request" and not message.get("more_body", False)
            return message

        async def closing_send(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start" and not is_read:
                closes = True
                headers = [header for header in message.get("headers", ()) if header[0] != b"connection"]
                message["headers"] = [*headers, (b"connection", b"close")]
            elif closes and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _throw_away(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, watched_receive, closing_send)


async def _throw_away(receive: Receive) -> None:
    """Read and discard the rest of a body if it is short and arrives soon."""
    num_bytes, is_there = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_THROW_AWAY_S):
            while is_there and num_bytes < _THROW_AWAY_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                is_there = message["type"] == "http.request" and message.get("more_body", False)


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object, strictly as RFC 8259 has it: each name once, no NaN, whole text.

    Raises:
        InvalidRequestError: It is none; the message says where it ends to be one.
    """
    raw = raw.removeprefix(_BOM)
    num_parts = _count_parts(raw)
    if num_parts > MAX_PARTS:
        raise InvalidRequestError(
            f"The body has {num_parts} objects, lists and object members; this server accepts at most {MAX_PARTS}."
        )
    try:
        body = jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="none")
    except ValueError as error:
        raise InvalidRequestError(f"The body is not JSON: {_reason(str(error))}.") from None
    if not isinstance(body, dict):
        raise InvalidRequestError(f"The body must be a JSON object, not {type(body).__name__}.")
    return body


def _check_length(request: Request, most: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise BodyTooLargeError(length[:20], most)


def _may_be_large(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    return b"transfer-encoding" in headers or not length.isdigit() or int(length[:20]) > _KEPT_OPEN_BYTES


def _count_parts(raw: bytes) -> int:
    """Count exactly only if there may be too many; characters inside strings do not count."""
    if _count_marks(raw) > MAX_PARTS:
        raw = b"".join(raw.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    return _count_marks(raw)


def _count_marks(raw: bytes) -> int:
    return raw.count(b"{") + raw.count(b"[") + raw.count(b":")


def _reason(message: str) -> str:
    """The parser's message, short: it may quote a long name, and the place stands at its end."""
    half = _MAX_ERROR_CHARS // 2
    short = message if len(message) <= _MAX_ERROR_CHARS else f"{message[:half]}…{message[-half:]}"
    if "recursion limit" in message:
        return f"it is nested too deeply ({short})"
    return f"unpaired surrogate ({short})" if "hex escape" in message else short
