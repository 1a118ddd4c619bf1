"""The transport for load, against a server that sends exact bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
import pytest

from loadtest.load.transport import LoadTransport

pytestmark = pytest.mark.anyio

SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"


@dataclass
class RawServer:
    """Sends the same bytes to each request, in pieces of `size`, and may close the connection then."""

    answer: bytes
    size: int = 1 << 20
    closes: bool = False
    requests: list[bytes] = field(default_factory=list)
    num_connections: int = 0
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests.append(head)
                for start in range(0, len(self.answer), self.size):
                    writer.write(self.answer[start : start + self.size])
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(raw: RawServer) -> AsyncIterator[httpx.AsyncClient]:
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
    raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x?y=1"
    try:
        async with httpx.AsyncClient(transport=LoadTransport(), timeout=None) as client:
            yield client
    finally:
        server.close()
        await asyncio.gather(*raw.tasks)


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize("answer", [SIZED, CHUNKED], ids=["sized", "chunked"])
async def test_a_body_is_read_however_it_is_cut(answer: bytes, size: int) -> None:
    raw = RawServer(answer, size)
    async with serving(raw) as client:
        response = await client.get(raw.url)
    assert (response.status_code, response.content) == (200, b"hello")


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    raw = RawServer(b"HTTP/1.0 404 Not Found\r\n\r\nhello", closes=True)
    async with serving(raw) as client:
        response = await client.get(raw.url)
    assert (response.status_code, response.content) == (404, b"hello")


async def test_the_request_has_its_path_and_its_headers() -> None:
    raw = RawServer(SIZED)
    async with serving(raw) as client:
        await client.get(raw.url, headers={"x-a": "b"})
    assert raw.requests[0].startswith(b"GET /x?y=1 HTTP/1.1\r\n")
    assert b"x-a: b\r\n" in raw.requests[0]
    assert raw.requests[0].lower().count(b"host: 127.0.0.1:") == 1


@pytest.mark.parametrize("answer", [SIZED, CHUNKED], ids=["sized", "chunked"])
async def test_a_connection_is_used_again(answer: bytes) -> None:
    raw = RawServer(answer)
    async with serving(raw) as client:
        for _ in range(3):
            await client.get(raw.url)
    assert (len(raw.requests), raw.num_connections) == (3, 1)


async def test_requests_at_the_same_time_have_their_own_connections() -> None:
    raw = RawServer(CHUNKED)
    async with serving(raw) as client:
        await asyncio.gather(*(client.get(raw.url) for _ in range(20)))
    assert raw.num_connections == 20


async def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    raw = RawServer(SIZED, closes=True)
    async with serving(raw) as client:
        for _ in range(3):
            assert (await client.get(raw.url)).content == b"hello"
            await asyncio.sleep(0.01)
    assert raw.num_connections == 3


async def test_a_body_that_is_not_read_to_its_end_takes_its_connection_along() -> None:
    raw = RawServer(CHUNKED[:-5])
    async with serving(raw) as client:
        async with client.stream("GET", raw.url) as response:
            assert await anext(response.aiter_raw()) == b"hello"
        async with client.stream("GET", raw.url):
            pass
    assert raw.num_connections == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed the connection without an answer"),
        (b"SSH-2.0\r\n\r\n", "wanted HTTP/1.1 and a status"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", "before the end of its answer"),
        (CHUNKED[:-5], "before the end of its answer"),
        (CHUNKED.replace(b"3\r\n", b"z\r\n"), "wanted the size of a chunk"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "longer than 65536 bytes"),
    ],
)
async def test_what_is_no_whole_answer_is_a_protocol_error(answer: bytes, message: str) -> None:
    raw = RawServer(answer, closes=True)
    async with serving(raw) as client:
        with pytest.raises(httpx.RemoteProtocolError, match=message):
            await client.get(raw.url)


async def test_nobody_listening_is_a_connect_error() -> None:
    async with httpx.AsyncClient(transport=LoadTransport()) as client:
        with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1:9"):
            await client.get("http://127.0.0.1:9/")
