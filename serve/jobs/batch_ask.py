"""Send lines of batches through the same path as requests: the same checks, queue, defaults and observers."""

import asyncio
import json
from uuid import uuid4

from starlette.requests import Request
from starlette.types import Message

from serve.access.keys import KeyRecord
from serve.access.ownership import ModelAccess
from serve.api.completions import Completions
from serve.engine.protocol import Endpoint
from serve.errors import ServeError
from serve.jobs.batch_lines import BatchLine
from serve.jobs.batch_results import LineAnswer
from serve.limits.limits import num_sequences
from serve.routing.resolver import Resolver

_TRANSIENT = (429, 503)
"""Statuses of a busy or starting server: retried until the batch expires."""
_MAX_TRIES = 3
"""Maximum number of tries with other server errors."""


class LineAsker:
    """Sends one line at a time, and retries transient errors.

    Args:
        max_pause_s: Maximum pause between two tries.
    """

    def __init__(self, completions: Completions, *, max_pause_s: float = 10.0) -> None:
        self._completions = completions
        self._max_pause_s = max_pause_s

    def num_places(self, endpoint: Endpoint, line: BatchLine) -> int:
        """Sequences that it needs. One that wants more than allowed is refused at once, and waits for no room."""
        wanted = max(1, num_sequences(line.body, endpoint))
        return wanted if wanted <= self._completions.limits.max_sequences else 1

    async def ask(self, endpoint: Endpoint, line: BatchLine, key: KeyRecord) -> LineAnswer:
        """The answer, or the error after the last try."""
        num_failed = 0
        while True:
            answer, retry_after_s = await self._ask_once(endpoint, line, key)
            num_failed += answer.status_code not in _TRANSIENT
            is_final = answer.status_code is not None and answer.status_code < 500 and answer.status_code != 429
            if is_final or num_failed >= _MAX_TRIES:
                return answer
            await asyncio.sleep(min(retry_after_s, self._max_pause_s))

    async def _ask_once(self, endpoint: Endpoint, line: BatchLine, key: KeyRecord) -> tuple[LineAnswer, float]:
        request = _request(endpoint, json.dumps(line.body, ensure_ascii=False, separators=(",", ":")).encode())
        response = await self._completions.answer(endpoint, request, key, is_batch=True)
        request_id = request.headers["x-request-id"]
        answer = LineAnswer(line.custom_id, response.status_code, request_id, json.loads(bytes(response.body)))
        return answer, float(response.headers.get("retry-after", 1))


def is_model(resolver: Resolver, access: ModelAccess, key: KeyRecord, model: str, base_digest: str) -> bool:
    """Whether a `model` exists, the key may use it, and it is of this server's base."""
    try:
        target = resolver.resolve(model, lambda name: access.may_use(key, name), "").target
    except ServeError:
        return False
    return target is None or resolver.base_digest(target) in (base_digest, None)


def _request(endpoint: Endpoint, body: bytes) -> Request:
    """The request that a client would have sent; it never disconnects."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError("waits until cancelled")

    headers = [(b"content-type", b"application/json"), (b"x-request-id", uuid4().hex.encode())]
    scope = {"type": "http", "method": "POST", "path": f"/v1/{endpoint}", "query_string": b"", "headers": headers}
    return Request(scope, receive)
