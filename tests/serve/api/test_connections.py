"""A real server's connections: slow senders, bodies that are too large, and what of them is read."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from adapters.store.store import AdapterStore
from serve.access.keys import KeyRing
from serve.api.connections import KEEP_ALIVE_S, RESERVED_CONNECTIONS, TimedConnection, bounded_connections
from tests.serving import JSON, chat, make_serving

pytestmark = pytest.mark.anyio

CHAT = json.dumps(chat()).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
WAIT_S = 30.0


class HastyConnection(TimedConnection):
    headers_timeout_s = 0.2


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.num_sent = 0

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
        self.num_sent += len(data)

    async def answer(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer; its body is read too."""
        async with asyncio.timeout(WAIT_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.splitlines()
            headers = dict(line.split(": ", 1) for line in lines if line)
            await self._reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(WAIT_S):
            with suppress(ConnectionError):
                return await self._reader.read()
            return b""


@asynccontextmanager
async def server(
    store: AdapterStore,
    base_folder: Path,
    keys: KeyRing | None = None,
    http: type[TimedConnection] = TimedConnection,
    **changes: Any,
) -> AsyncIterator[int]:
    """A port that a real HTTP server with a fake engine listens on."""
    app = make_serving(store, base_folder, keys=keys, **changes).app
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, access_log=False, http=http, timeout_keep_alive=KEEP_ALIVE_S
    )
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    try:
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = True
        await task


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def sized(num_bytes: int) -> bytes:
    return POST + b"content-length: %d\r\n\r\n" % num_bytes


async def trickle(client: Client) -> None:
    with suppress(ConnectionError):
        while True:
            await client.send(b"x")
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("head", [sized(1000), CHUNKED + b"ff\r\n"])
async def test_a_trickling_body_is_a_408_and_the_end_of_the_connection(
    store: AdapterStore, base_folder: Path, head: bytes
) -> None:
    async with server(store, base_folder, body_timeout_s=0.3) as port, connection(port) as client:
        await client.send(head)
        sending = asyncio.create_task(trickle(client))
        status, headers = await client.answer()
        assert (status, headers["connection"], await client.rest()) == (408, "close", b"")
        sending.cancel()


@pytest.mark.slow
async def test_a_slow_body_holds_up_nobody(store: AdapterStore, base_folder: Path) -> None:
    async with server(store, base_folder, body_timeout_s=WAIT_S) as port, connection(port) as slow:
        await slow.send(sized(len(CHAT)) + CHAT[:10])
        async with connection(port) as other:
            await other.send(sized(len(CHAT)) + CHAT)
            assert (await other.answer())[0] == 200
        await slow.send(CHAT[10:])
        assert (await slow.answer())[0] == 200


@pytest.mark.slow
async def test_a_length_that_is_too_large_is_answered_before_the_body(store: AdapterStore, base_folder: Path) -> None:
    async with server(store, base_folder) as port, connection(port) as client:
        await client.send(POST + b"expect: 100-continue\r\ncontent-length: 524289\r\n\r\n")
        status, headers = await client.answer()
        assert (status, headers["connection"], await client.rest()) == (413, "close", b"")


@pytest.mark.slow
async def test_of_a_chunked_body_no_more_than_the_limit_is_read(store: AdapterStore, base_folder: Path) -> None:
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    async with server(store, base_folder) as port, connection(port) as client:
        await client.send(CHUNKED)

        async def flood() -> None:
            for _ in range(1000):
                await client.send(chunk)

        sending = asyncio.create_task(flood())
        status, headers = await client.answer()
        assert (status, headers["connection"]) == (413, "close")
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(sending, WAIT_S)
        assert client.num_sent < 64 << 20


@pytest.mark.slow
async def test_a_client_that_sends_too_much_gets_the_answer(store: AdapterStore, base_folder: Path) -> None:
    """An asynchronous client loses what it has not read yet when its connection is reset."""
    async with server(store, base_folder) as port, httpx.AsyncClient(timeout=WAIT_S) as client:
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        sent = [client.post(address, content=b"x" * 4_000_000, headers=JSON) for _ in range(20)]
        assert {answer.status_code for answer in await asyncio.gather(*sent)} == {413}


async def test_what_a_page_sends_is_not_read_either(store: AdapterStore, base_folder: Path) -> None:
    async with server(store, base_folder) as port, connection(port) as client:
        await client.send(sized(200_000).replace(b"application/json", b"text/plain"))
        status, headers = await client.answer()
        assert (status, headers["connection"]) == (415, "close")


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [512 << 10, 100])
async def test_a_body_within_the_limit_is_answered(store: AdapterStore, base_folder: Path, num_bytes: int) -> None:
    body = CHAT + b" " * (num_bytes - len(CHAT))
    async with server(store, base_folder) as port, connection(port) as client:
        await client.send(sized(len(body)) + body)
        assert (await client.answer())[0] == 200
        await client.send(CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(("num_bytes", "is_closed"), [(200_000, True), (100, False)])
async def test_a_large_body_without_a_key_is_not_read(
    tmp_path: Path, store: AdapterStore, base_folder: Path, num_bytes: int, is_closed: bool
) -> None:
    (tmp_path / "keys.json").write_text('{"keys": []}')
    async with server(store, base_folder, KeyRing(tmp_path / "keys.json")) as port, connection(port) as client:
        await client.send(sized(num_bytes))
        status, headers = await client.answer()
        assert (status, headers.get("connection") == "close") == (401, is_closed)


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"", b"POST /v1/chat/comp", POST, b"GET /health HTTP/1.1\r\n\r\n" + POST])
async def test_headers_that_do_not_come_end_the_connection(
    store: AdapterStore, base_folder: Path, start: bytes
) -> None:
    async with server(store, base_folder, http=HastyConnection) as port, connection(port) as client:
        await client.send(start)
        sending = asyncio.create_task(trickle(client)) if start else None
        await client.rest()
        if sending is not None:
            sending.cancel()


@pytest.mark.slow
async def test_an_answer_that_takes_longer_than_headers_may_is_given(store: AdapterStore, base_folder: Path) -> None:
    async with server(store, base_folder, http=HastyConnection) as port, connection(port) as client:
        await client.send(sized(len(CHAT)))
        await asyncio.sleep(2 * HastyConnection.headers_timeout_s)
        await client.send(CHAT)
        assert (await client.answer())[0] == 200


class Refused:
    """Counts connections that were refused."""

    num = 0

    def __call__(self) -> None:
        self.num += 1


async def test_a_connection_beyond_the_limit_is_a_503_until_one_ends(store: AdapterStore, base_folder: Path) -> None:
    refused = Refused()
    bounded = bounded_connections(2, refused)
    async with server(store, base_folder, http=bounded) as port, connection(port) as first:
        async with connection(port) as second, connection(port) as third:
            await third.send(sized(len(CHAT)) + CHAT)
            status, headers = await third.answer()
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "5")
            assert (await third.rest(), refused.num) == (b"", 1)
            for served in (first, second):
                await served.send(sized(len(CHAT)) + CHAT)
                assert (await served.answer())[0] == 200
        async with asyncio.timeout(WAIT_S):
            while await is_refused(port):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def client_beyond_the_limit(
    store: AdapterStore, base_folder: Path, refused: Refused, keys: KeyRing | None = None
) -> AsyncIterator[Client]:
    http = bounded_connections(1, refused)
    async with server(store, base_folder, keys, http) as port, connection(port), connection(port) as client:
        yield client


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
async def test_operators_are_answered_once_beyond_the_limit(store: AdapterStore, base_folder: Path, path: str) -> None:
    refused = Refused()
    async with client_beyond_the_limit(store, base_folder, refused) as client:
        await client.send(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        status, headers = await client.answer()
        assert (status, headers["connection"], await client.rest(), refused.num) == (200, "close", b"", 0)


async def test_a_scrape_beyond_the_limit_needs_its_key(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": []}')
    async with client_beyond_the_limit(store, base_folder, Refused(), KeyRing(tmp_path / "keys.json")) as client:
        await client.send(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert (await client.answer())[0] == 401


async def test_beyond_the_limit_the_longest_idle_connection_gives_way(store: AdapterStore, base_folder: Path) -> None:
    refused = Refused()
    http = bounded_connections(3, refused)
    async with server(store, base_folder, http=http) as port, connection(port) as busy, connection(port) as first:
        await busy.send(sized(len(CHAT)))
        async with connection(port) as second:
            for client in (first, second):
                await client.send(sized(len(CHAT)) + CHAT)
                assert (await client.answer())[0] == 200
            async with connection(port) as third:
                for client in (third, second):
                    await client.send(sized(len(CHAT)) + CHAT)
                    assert (await client.answer())[0] == 200
                assert await first.rest() == b""
                await busy.send(CHAT)
                assert (await busy.answer())[0] == 200
    assert refused.num == 0


async def test_a_connection_beyond_the_reserve_is_a_503_at_once(store: AdapterStore, base_folder: Path) -> None:
    refused = Refused()
    async with server(store, base_folder, http=bounded_connections(1, refused)) as port, AsyncExitStack() as opened:
        for _ in range(1 + RESERVED_CONNECTIONS):
            await opened.enter_async_context(connection(port))
        async with connection(port) as client:
            status, headers = await client.answer()
            assert (status, headers["connection"], await client.rest(), refused.num) == (503, "close", b"", 1)


async def is_refused(port: int) -> bool:
    async with connection(port) as client:
        await client.send(sized(len(CHAT)) + CHAT)
        with suppress(ConnectionError):
            return (await client.answer())[0] == 503
        return True
