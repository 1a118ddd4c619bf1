"""One request, streamed and timed. Every failure becomes a record with an error kind, never an exception.

Per chunk it splits lines and parses one small JSON object, nothing more: this is the generator's hot path.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from loadtest.load.records import ErrorKind, RequestRecord
from loadtest.load.transport import LoadTransport
from loadtest.load.workload import PlannedRequest

Clock = Callable[[], float]
"""Seconds since the start of the run."""

_MAX_MESSAGE_CHARS = 300
_MAX_ERROR_BYTES = 1 << 16


def open_client(
    api_key: str | None = None,
    *,
    clock: Clock = time.perf_counter,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """A client without limits: unbounded connections, no timeout, no retries, no proxy.

    `clock` is used to time requests.
    """
    headers = {"accept-encoding": "identity", "content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    transport = transport or LoadTransport(clock)
    return httpx.AsyncClient(headers=headers, timeout=None, trust_env=False, transport=transport)


class Attempt:
    """A request in flight, sent on creation; `record` gives its current state at any time."""

    def __init__(self, planned: PlannedRequest, clock: Clock) -> None:
        self._planned = planned
        self._clock = clock
        self._sent_s = clock()
        self._chunk_times_s: list[float] = []
        self._served_by: str | None = None
        self._is_cold: bool | None = None
        self._status: int | None = None
        self._usage: dict[str, Any] = {}

    async def run(self, client: httpx.AsyncClient, url: str, timeout_s: float) -> RequestRecord:
        """Send the request and read the whole answer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._stream(client, url)
        except TimeoutError:
            return self.record("timeout", f"No complete answer within {timeout_s:g} s.")
        except _FailedError as failure:
            return self.record(failure.kind, str(failure))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            kind: ErrorKind = "connection" if self._status is None else "broken_stream"
            return self.record(kind, f"{type(error).__name__}: {error}")
        return self.record()

    def record(self, error: ErrorKind | None = None, error_message: str | None = None) -> RequestRecord:
        """The current record; without an error, a successful request."""
        return RequestRecord(
            index=self._planned.index,
            model=self._planned.model,
            served_by=self._served_by,
            is_cold=self._is_cold,
            intended_s=self._planned.intended_s,
            sent_s=self._sent_s,
            chunk_times_s=tuple(self._chunk_times_s),
            ended_s=self._clock(),
            num_prompt_tokens=self._usage.get("prompt_tokens"),
            num_completion_tokens=self._usage.get("completion_tokens", len(self._chunk_times_s)),
            status=self._status,
            error=error,
            error_message=error_message and error_message[:_MAX_MESSAGE_CHARS],
        )

    async def _stream(self, client: httpx.AsyncClient, url: str) -> None:
        headers = {"x-request-id": f"load-{self._planned.index}"}
        async with client.stream("POST", url, content=self._planned.body, headers=headers) as response:
            self._status = response.status_code
            cold = response.headers.get("x-lorikeet-cold")
            self._is_cold = None if cold is None else cold == "1"
            if response.status_code != 200:
                raise await _refusal(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                got = response.headers.get("content-type", "nothing")
                raise _FailedError("broken_stream", f"Got content type {got!r}, wanted text/event-stream.")
            await self._read_events(response)

    async def _read_events(self, response: httpx.Response) -> None:
        arrived_s: Clock = response.extensions.get("arrived_s", self._clock)
        rest, is_done = b"", False
        async for received in response.aiter_raw():
            now_s = arrived_s()
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    is_done = line[5:].strip() == b"[DONE]" or self._take_event(line[5:], now_s)
        if not is_done:
            raise _FailedError("broken_stream", "The stream ended before `data: [DONE]`.")

    def _take_event(self, content: bytes, now_s: float) -> bool:
        """Record one event; returns False because it is not the last."""
        try:
            event = json.loads(content)
            if event.get("error"):
                raise _streamed_error(event["error"])
            if event.get("usage"):
                self._usage = event["usage"]
            if event["choices"] and _is_piece(event["choices"][0]):
                self._chunk_times_s.append(now_s)
            self._served_by = event.get("model", self._served_by)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _FailedError("broken_stream", f"Not a completion chunk: {content[:80]!r}") from error
        return False


class _FailedError(Exception):
    """The server answered with an error status."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind


def _is_piece(choice: dict[str, Any]) -> bool:
    """Whether a chunk carries a part of the answer.

    A token without visible text (empty `content`, or only token ids) counts; the first chunk with only the role and
    the last chunk with only the finish reason do not.
    """
    if choice.get("token_ids"):
        return True
    delta = choice["delta"]
    if delta.get("content") or delta.get("tool_calls") or delta.get("reasoning") or delta.get("reasoning_content"):
        return True
    return "content" in delta and delta["content"] is not None and "role" not in delta


async def _refusal(response: httpx.Response) -> _FailedError:
    content = b""
    async for received in response.aiter_bytes():
        content += received
        if len(content) > _MAX_ERROR_BYTES:
            break
    return _FailedError(_kind_of(response.status_code), f"{response.status_code}: {_message_in(content)}")


def _streamed_error(error: Any) -> _FailedError:
    fields = error if isinstance(error, dict) else {"message": error}
    code = fields.get("code")
    kind = _kind_of(code) if isinstance(code, int) else "server_error"
    return _FailedError(kind, f"In the stream: {fields.get('message')}")


def _kind_of(status: int) -> ErrorKind:
    if status == 429:
        return "throttled"
    return "client_error" if 300 <= status < 500 else "server_error"


def _message_in(content: bytes) -> str:
    """The message of an OpenAI error, else the start of the body."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace").strip() or "(no body)"
