"""One record per generation: what the engine did for a request, for the metrics and later the quality monitor."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass
class RequestContext:
    """Whose request it is, and its prompt and completion tokens so far. It follows the request through vLLM."""

    tenant: str
    request_id: str
    num_tokens: int = 0


current_request: ContextVar[RequestContext | None] = ContextVar("current_request", default=None)

Outcome = Literal["ok", "cancelled", "error"]


@dataclass(frozen=True)
class GenerationRecord:
    """A finished generation. Times in seconds; None where the engine never got that far."""

    lora_name: str | None
    outcome: Outcome
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    finish_reasons: tuple[str, ...]
    texts: tuple[str, ...]


class GenerationObserver(Protocol):
    """Who wants to know of generations; called on the event loop, so it must be quick."""

    def generation_started(self, lora_name: str | None) -> None: ...

    def generation_finished(self, record: GenerationRecord) -> None: ...
