"""An httpx transport for load tests: HTTP/1.1 directly on asyncio, with a constant-time connection pool.

httpx's own goes through all connections at every request and every end of one (milliseconds with 64 of them), and
parses each chunk with h11. Then the generator is what a load test measures. `docs/loadtest.md` has both figures.

It also notes when bytes came, before any task gets to read them: with many streams the difference is milliseconds. The
response's extension `arrived_s` is a function that says so of the piece that was read last.
"""

import asyncio
import ssl
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable

import httpx

# Below the 5 s after which uvicorn closes an idle connection: reusing one that is just closing would be our error.
_KEEPALIVE_EXPIRY_S = 3.0
_MAX_HEAD_BYTES = 1 << 16

Origin = tuple[str, str, int]


class LoadTransport(httpx.AsyncBaseTransport):
    """One connection per request in flight; the most recently used idle one is reused first."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` gives the times of `arrived_s`."""
        self._clock = clock
        self._idle: dict[Origin, list[_ClientConnection]] = defaultdict(list)
        self._ssl_context: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and return when the head of the answer is there.

        Raises:
            httpx.ConnectError: No connection.
            httpx.ReadError: The connection broke.
            httpx.RemoteProtocolError: It was closed early, or what came is not HTTP/1.1.
        """
        origin = (request.url.scheme, request.url.host, request.url.port or _default_port(request.url.scheme))
        connection = self._reusable(origin) or await self._connect(origin)
        try:
            connection.write(_head_of(request) + request.content)
            status, headers = _parse_head(await connection.read_head())
        except BaseException:
            connection.close()
            raise
        body = _Body(connection, _decoder(headers), lambda: self._idle[origin].append(connection))
        return httpx.Response(status, headers=headers, stream=body, extensions={"arrived_s": connection.arrived_s})

    async def aclose(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _reusable(self, origin: Origin) -> "_ClientConnection | None":
        idle = self._idle[origin]
        while idle:
            connection = idle.pop()
            if connection.is_fresh:
                return connection
            connection.close()
        return None

    async def _connect(self, origin: Origin) -> "_ClientConnection":
        scheme, host, port = origin
        context = self._tls() if scheme == "https" else None
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _ClientConnection(self._clock), host, port, ssl=context
            )
        except OSError as error:
            raise httpx.ConnectError(f"{host}:{port}: {error.strerror or error}") from error
        return connection

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
        return self._ssl_context


class _ClientConnection(asyncio.Protocol):
    """One connection: received but unread data with arrival times, and the task that waits for more."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._unread: deque[tuple[float, bytes]] = deque()
        self._read_arrived_s = 0.0
        self._is_closed = False
        self._problem: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._idle_since_s = 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether it can be reused; unexpected data makes it unusable."""
        is_recent = self._loop.time() - self._idle_since_s < _KEEPALIVE_EXPIRY_S
        return is_recent and not self._is_closed and not self._unread

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unread.append((self._clock(), data))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed, self._problem = True, exc
        self._wake()

    def write(self, content: bytes) -> None:
        self._transport.write(content)

    def close(self) -> None:
        self._transport.abort()

    def keep(self) -> None:
        """Mark the connection as idle."""
        self._idle_since_s = self._loop.time()

    def arrived_s(self) -> float:
        """Arrival time of the data that was read last."""
        return self._read_arrived_s

    async def read(self) -> bytes:
        """The next data, at least one byte; empty at the end.

        Raises:
            httpx.ReadError: The connection broke.
        """
        while not self._unread and not self._is_closed:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._unread:
            self._read_arrived_s, received = self._unread.popleft()
            return received
        if self._problem is not None:
            raise httpx.ReadError(str(self._problem)) from self._problem
        return b""

    async def read_head(self) -> bytes:
        """Status line and headers; the rest stays buffered."""
        head = b""
        while b"\r\n\r\n" not in head:
            received = await self.read()
            if not received:
                raise httpx.RemoteProtocolError("The server closed the connection without an answer.")
            head += received
            if len(head) > _MAX_HEAD_BYTES:
                raise httpx.RemoteProtocolError(f"The head of the answer is longer than {_MAX_HEAD_BYTES} bytes.")
        head, _, rest = head.partition(b"\r\n\r\n")
        if rest:
            self._unread.appendleft((self._read_arrived_s, rest))
        return head

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Body(httpx.AsyncByteStream):
    """The response body in the received pieces. The connection is kept if the body is read to its end."""

    def __init__(self, connection: _ClientConnection, decoder: "_Decoder", keep: Callable[[], None]) -> None:
        self._connection = connection
        self._decoder = decoder
        self._keep = keep

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self._decoder.is_done:
            received = await self._connection.read()
            content = self._decoder.feed(received) if received else self._decoder.end()
            if content:
                yield content

    async def aclose(self) -> None:
        if self._decoder.is_done and self._decoder.can_keep:
            self._connection.keep()
            self._keep()
        else:
            self._connection.close()


class _Decoder:
    """The body's bytes without HTTP's framing. This one: all bytes until the connection is closed."""

    can_keep = False

    def __init__(self) -> None:
        self.is_done = False

    def feed(self, received: bytes) -> bytes:
        return received

    def end(self) -> bytes:
        """Called when the connection is closed."""
        self.is_done = True
        return b""


class _SizedDecoder(_Decoder):
    """A body of `content-length` bytes."""

    can_keep = True

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes
        self.is_done = size_bytes == 0

    def feed(self, received: bytes) -> bytes:
        self._left_bytes -= len(received)
        self.is_done = self._left_bytes <= 0
        return received

    def end(self) -> bytes:
        raise httpx.RemoteProtocolError("The server closed the connection before the end of its answer.")


class _ChunkedDecoder(_SizedDecoder):
    """Chunks, each after a line with its size in hexadecimal; a size of zero ends them. Trailers are not expected."""

    def __init__(self) -> None:
        self._rest = b""
        self.is_done = False

    def feed(self, received: bytes) -> bytes:
        buffer, start, pieces = self._rest + received, 0, []
        while (line_end := buffer.find(b"\r\n", start)) >= 0:
            size_bytes = _chunk_size(buffer[start:line_end])
            end = line_end + 2 + size_bytes
            if len(buffer) < end + 2:
                break
            pieces.append(buffer[line_end + 2 : end])
            start = end + 2
            if size_bytes == 0:
                self.is_done = True
                break
        self._rest = buffer[start:]
        return b"".join(pieces)


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise httpx.RemoteProtocolError(f"Got {line[:40]!r}, wanted the size of a chunk.") from None


def _decoder(headers: list[tuple[bytes, bytes]]) -> _Decoder:
    fields = {name.lower(): value.strip().lower() for name, value in headers}
    if fields.get(b"transfer-encoding") == b"chunked":
        return _ChunkedDecoder()
    size = fields.get(b"content-length", b"")
    return _SizedDecoder(int(size)) if size.isdigit() else _Decoder()


def _head_of(request: httpx.Request) -> bytes:
    line = b"%s %s HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)
    return line + b"".join(b"%s: %s\r\n" % header for header in request.headers.raw) + b"\r\n"


def _parse_head(head: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    status_line, *lines = head.split(b"\r\n")
    version, _, rest = status_line.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise httpx.RemoteProtocolError(f"Got {status_line[:40]!r}, wanted HTTP/1.1 and a status.")
    headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    return int(rest[:3]), headers


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
