"""The API of files, batches and fine-tuning jobs as `lorikeet bench jobs` calls it."""

import time
from collections.abc import Callable
from typing import Any, BinaryIO, Literal

import httpx

from loadtest.errors import TargetError

Purpose = Literal["batch", "fine-tune"]

_REQUEST_TIMEOUT_S = 600.0
_POLL_S = 0.1
_TIMEOUT_S = 900.0
_FINAL = ("completed", "succeeded", "failed", "expired", "cancelled")


class JobsApi:
    """Requests to one server.

    Args:
        url: With `/v1`.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(base_url=url, timeout=_REQUEST_TIMEOUT_S, trust_env=False, transport=transport)

    def get(self, path: str) -> dict[str, Any]:
        """Raises TargetError if the server refuses, as do all methods here."""
        return self._request("GET", path)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._request("POST", path, json=body)

    def delete(self, path: str) -> None:
        self._request("DELETE", path)

    def upload(self, content: bytes | BinaryIO, purpose: Purpose) -> str:
        """Id of a new file of these JSON Lines."""
        file = {"file": ("lines.jsonl", content)}
        file_id: str = self._request("POST", "/files", data={"purpose": purpose}, files=file)["id"]
        return file_id

    def wait(self, path: str, is_enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Poll a batch or job until it satisfies `is_enough`; returns it.

        Raises:
            TargetError: It has ended without, or takes too long.
        """
        end_s = time.monotonic() + _TIMEOUT_S
        while not is_enough(found := self.get(path)):
            if found["status"] in _FINAL or time.monotonic() > end_s:
                raise TargetError(f"{path} is {found['status']}: {found.get('errors') or found.get('error')}")
            time.sleep(_POLL_S)
        return found

    def _request(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        response = self._client.request(method, path, **content)
        if response.is_error:
            raise TargetError(f"{response.request.url.path}: {response.status_code}: {response.text[:300]}")
        answer: dict[str, Any] = response.json()
        return answer
