"""What the server needs of an engine. vLLM fills it in `engine.py`; tests fill it by hand."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from starlette.requests import Request

from adapters.reference import Target

Endpoint = Literal["chat/completions", "completions", "responses"]


@dataclass(frozen=True)
class Answer:
    """An answer to a client: one JSON body, or a stream of server-sent events, ready to send."""

    body: dict[str, Any] | AsyncGenerator[str, None]


class Engine(Protocol):
    """One base model and the adapters resident on it."""

    @property
    def is_ready(self) -> bool: ...

    async def start(self) -> None:
        """Load the base; returns when requests can be taken."""
        ...

    async def stop(self) -> None: ...

    async def load(self, target: Target, folder: Path) -> None:
        """Make a version resident. Raises `AdapterRefusedError` with vLLM's reason."""
        ...

    async def unload(self, target: Target) -> None:
        """Forget a version and free its slot."""
        ...

    def render(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the base's chat template, with the assistant's opening."""
        ...

    async def logprobs(self, token_ids: Sequence[int], target: Target | None) -> list[float]:
        """Teacher-forced log-probability, nats, of every token after the first: (T,) -> (T-1,)."""
        ...

    async def answer(self, endpoint: Endpoint, body: dict[str, Any], request: Request) -> Answer:
        """Answer a request whose `model` is the base's name or a resident version's `lora_name`.

        Raises:
            EngineRequestError: vLLM refused the request.
            NotReadyError: The engine is dead.
        """
        ...
