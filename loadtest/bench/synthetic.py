"""A server that knows the truth: OpenAI's streaming surface with set delays, and a log of when each chunk really left.

It runs in a process of its own, so that its clock does not share the generator's event loop. Its times are those of
`time.perf_counter()`, which all processes of a machine share on Linux (CLOCK_MONOTONIC).
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from loadtest.bench.children import child

UNKNOWN_MODEL = "unknown"
"""The one model that it does not have."""

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


@dataclass(frozen=True)
class Delays:
    """What the server does. The stall stops the whole process, once, so long after the first request came."""

    ttft_s: float = 0.05
    itl_s: float = 0.01
    stall_after_s: float = 0.0
    stall_s: float = 0.0


@dataclass(frozen=True)
class SyntheticServer:
    url: str

    def sent_s(self) -> dict[str, list[float]]:
        """When each chunk of an answer was sent, by `x-request-id`: `time.perf_counter()`, in seconds."""
        times: dict[str, list[float]] = httpx.get(f"{self.url}/sent", timeout=30).raise_for_status().json()
        return times


@contextmanager
def synthetic_server(delays: Delays) -> Iterator[SyntheticServer]:
    """The server on a free loopback port, in a child process, until the block ends."""
    command = [sys.executable, "-P", "-m", "loadtest.bench.synthetic", json.dumps(asdict(delays))]
    with child(command, is_asked=True) as process:
        assert process.stdout is not None
        yield SyntheticServer(f"http://127.0.0.1:{int(process.stdout.readline())}")


async def serve(delays: Delays) -> None:
    """Serve on a free port, which is printed, until the process ends."""
    state = _State(delays)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _ServerConnection(state), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class _State:
    def __init__(self, delays: Delays) -> None:
        self.delays = delays
        self.sent_s: dict[str, list[float]] = {}

    def note(self, request_id: str) -> list[float]:
        """The empty list of this answer's times."""
        if not self.sent_s and self.delays.stall_s:
            asyncio.get_running_loop().call_later(self.delays.stall_after_s, time.sleep, self.delays.stall_s)
        return self.sent_s.setdefault(request_id, [])


class _ServerConnection(asyncio.Protocol):
    """One keep-alive connection: one request at a time, as HTTP/1.1 clients send them."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        request_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) >= int(headers.get("content-length", 0)):
            self._received = b""
            self._answer(request_line.split()[1], headers, body)

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> None:
        if path == "/sent":
            self._write_json(200, self._state.sent_s)
        elif path.endswith("/chat/completions"):
            self._stream(headers, json.loads(body))
        else:
            self._write_json(404, {"error": {"message": f"There is no {path}."}})

    def _write_json(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self._transport.write(
            b"HTTP/1.1 %d -\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )

    def _stream(self, headers: dict[str, str], fields: dict[str, Any]) -> None:
        if fields["model"] == UNKNOWN_MODEL:
            self._write_json(404, {"error": {"message": f"The model {UNKNOWN_MODEL!r} does not exist."}})
            return
        if not fields.get("stream"):
            self._write_json(200, _whole(fields["model"], fields.get("max_tokens") or fields["max_completion_tokens"]))
            return
        sent_s = self._state.note(headers.get("x-request-id", ""))
        due_s = self._loop.time() + self._state.delays.ttft_s
        pieces = _pieces(fields["model"], fields.get("max_tokens") or fields["max_completion_tokens"])
        self._transport.write(_HEAD)
        self._loop.call_at(due_s, self._send, sent_s, pieces, 0, due_s)

    def _send(self, sent_s: list[float], pieces: list[bytes], number: int, due_s: float) -> None:
        if self._transport.is_closing():
            return
        if number < len(pieces) - 1:
            sent_s.append(time.perf_counter())
            self._transport.write(pieces[number])
            due_s += self._state.delays.itl_s
            self._loop.call_at(due_s, self._send, sent_s, pieces, number + 1, due_s)
        else:
            self._transport.write(pieces[number])


def _whole(model: str, max_tokens: int) -> dict[str, Any]:
    """An answer that is not streamed, at once."""
    message = {"role": "assistant", "content": " word" * max_tokens}
    usage = {"prompt_tokens": 9, "completion_tokens": max_tokens, "total_tokens": 9 + max_tokens}
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": choices,
        "usage": usage,
    }


def _pieces(model: str, max_tokens: int) -> list[bytes]:
    """What to write at each step: one chunk a token, the role before the first; then usage and the end."""
    role = _chunk(model, choices=[_choice({"role": "assistant", "content": ""})])
    token = _chunk(model, choices=[_choice({"content": " word"})])
    counts = {"prompt_tokens": 9, "completion_tokens": max_tokens, "total_tokens": 9 + max_tokens}
    usage = _chunk(model, choices=[], usage=counts)
    tokens = [role + token] + [token] * (max_tokens - 1)
    return [*tokens, usage + _framed(b"data: [DONE]\n\n") + _END]


def _choice(delta: dict[str, str]) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}


def _chunk(model: str, **fields: Any) -> bytes:
    event = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": model} | fields
    return _framed(b"data: %s\n\n" % json.dumps(event, separators=(",", ":")).encode())


def _framed(content: bytes) -> bytes:
    """One chunk of HTTP/1.1's chunked encoding."""
    return b"%x\r\n%s\r\n" % (len(content), content)


if __name__ == "__main__":
    asyncio.run(serve(Delays(**json.loads(sys.argv[1]))))
