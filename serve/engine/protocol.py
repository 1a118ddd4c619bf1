"""What the server needs of an engine. vLLM fills it in `engine.py`; tests fill it by hand."""

from collections.abc import AsyncGenerator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from adapters.reference import Target
from serve.records import Caller, RequestResult

Endpoint = Literal["chat/completions", "completions", "responses"]

BACKGROUND_PRIORITY = 1_000_000
"""`priority` of what no client waits for: vLLM's scheduler serves lower numbers first."""


@dataclass(frozen=True)
class Answer:
    """An answer to a client: one JSON body, or a stream of server-sent events, ready to send."""

    body: dict[str, Any] | AsyncGenerator[str, None]


@dataclass(frozen=True)
class EngineAdapters:
    """What the engine itself says it holds: `lora_name` per slot (None: free, or another's), and in host memory."""

    slots: tuple[str | None, ...]
    host: frozenset[str]


class Engine(Protocol):
    """One base model and the adapters resident on it. Its errors are the house's own: NotReadyError when it dies.

    Attributes:
        logprob_rate: Share of the generations, drawn anew for each, whose log-probabilities the observer is given.
    """

    logprob_rate: float

    @property
    def is_ready(self) -> bool: ...

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the KV cache holds; None where the engine does not run, or does not say."""
        ...

    @property
    def resident(self) -> AbstractSet[str]:
        """`lora_name` of each version in the engine, checked or not; only `load`, `unload` and `stop` change it."""
        ...

    async def start(self) -> None:
        """Load the base; returns when requests can be taken."""
        ...

    async def stop(self) -> None:
        """End it and all its processes; afterwards it can be started again."""
        ...

    async def wait_until_dead(self) -> None:
        """Returns when a started engine can no longer answer."""
        ...

    async def load(self, target: Target, folder: Path) -> str | None:
        """Make a version resident.

        Returns:
            A digest of the weights as the engine has them, where it has one: of the same digest, the same answers.

        Raises:
            AdapterRefusedError: With vLLM's reason.
        """
        ...

    async def unload(self, target: Target) -> None:
        """Free a version's slot and memory; does nothing for one that is not loaded.

        Raises:
            ServeError: The engine failed, as in all that follows; the version is still resident.
        """
        ...

    async def pin(self, target: Target) -> None:
        """Keep a resident version in its slot."""
        ...

    async def unpin(self, target: Target) -> None: ...

    async def adapters(self) -> EngineAdapters:
        """What is in the slots and in host memory, asked of the engine."""
        ...

    def render(
        self, messages: Sequence[dict[str, Any]], at: datetime | None = None, tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        """Token ids of a conversation in the base's chat template, with the assistant's opening.

        Args:
            at: The time that the template may write; None: now, as a client's request gets it.
        """
        ...

    async def logprobs(self, token_ids: Sequence[int], target: Target | None) -> list[float]:
        """Teacher-forced log-probability, nats, of every token after the first: (T,) -> (T-1,).

        Raises:
            NotReadyError: The engine is dead.
            ServeError: It failed otherwise.
        """
        ...

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], caller: Caller, result: RequestResult | None = None
    ) -> Answer:
        """Answer a request whose `model` is the base's name or a resident version's `lora_name`.

        Args:
            result: Filled in for the caller. It is complete, and the engine works on the request no more, when this
                returns a body or raises, also where it is cancelled; of a stream, when it is closed.

        Raises:
            EngineRequestError: vLLM refused the request.
            NotReadyError: The engine is dead.
        """
        ...
