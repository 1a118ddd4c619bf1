"""State of a running request, and records of finished generations and requests."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from serve.background import Failures
from serve.errors import ServeError
from serve.generations import OpenGenerations

GenerationOutcome = Literal["ok", "cancelled", "error", "lost"]
"""Lost: the engine died, for which the version is not responsible."""
RequestOutcome = Literal["ok", "cancelled", "client_error", "server_error"]
Phase = Literal["body", "resolve", "admission", "residency"]
Source = Literal["client", "shadow", "monitor"]

ObserverT = TypeVar("ObserverT")


@dataclass
class RequestContext:
    """Whose request it is, and what became of it so far. It follows the request through vLLM.

    `num_tokens` counts prompt and completion; `started_s` is when the body was there, before that when the request
    came: a slow upload is not the server's; `phases_s` holds what comes before the engine, in seconds, and
    `phase_starts_s` when it began, on the clock of `started_s`; `generation` is the last one where a request took
    several; `traceparent` is the client's header; `failure` is why the engine ended a generation; `sticky_key` is what
    chose between stable and canary, None where the client named a version: the request id where it is nobody's.
    """

    tenant: str
    request_id: str
    num_tokens: int = 0
    started_s: float = field(default_factory=time.perf_counter)
    phases_s: dict[Phase, float] = field(default_factory=dict)
    phase_starts_s: dict[Phase, float] = field(default_factory=dict)
    is_cold: bool = False
    generation: "GenerationRecord | None" = None
    traceparent: str | None = None
    failure: ServeError | None = None
    sticky_key: str | None = None
    generations: OpenGenerations = field(default_factory=OpenGenerations)

    def count_as_load(self, load_s: float) -> None:
        """The last part of the wait for a turn was one for a load."""
        self.phases_s["admission"] -= load_s
        self.phases_s["residency"] += load_s
        self.phase_starts_s["residency"] -= load_s

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Measure one, also where it fails."""
        start_s = self.phase_starts_s[name] = time.perf_counter()
        try:
            yield
        finally:
            self.phases_s[name] = time.perf_counter() - start_s


current_request: ContextVar[RequestContext | None] = ContextVar("current_request", default=None)
current_source: ContextVar[Source] = ContextVar("current_source", default="client")
"""Source of a request: a client, a shadow copy or the quality monitor. Only clients count as traffic."""


def ask_as(source: Source) -> None:
    """Mark this task's engine calls as internal: their tokens are not charged to a tenant."""
    current_request.set(None)
    current_source.set(source)


@dataclass(frozen=True)
class GenerationRecord:
    """A finished generation. Times in seconds; None where the engine never got that far.

    `ttft_s` and `e2e_s` count from the request's arrival, so they hold its waits for a turn and for a load too.
    `itl_s` are the gaps between the pieces of a streamed answer; a whole answer has none.

    `tenant` and `request_id` are None where no client asked. Tokens and their log-probabilities (nats, of the model's
    own distribution) are those of the first choice; there are none of the latter where the generation was not drawn.
    """

    lora_name: str | None
    source: Source
    tenant: str | None
    request_id: str | None
    outcome: GenerationOutcome
    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    itl_s: tuple[float, ...]
    e2e_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    finish_reasons: tuple[str, ...]
    prompt_text: str
    """With the chat template; "" where the engine was given tokens only."""
    prompt_token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    is_finite: bool = True
    """False where the engine ended it because its logits were NaN or infinite."""


@dataclass(frozen=True)
class AnsweredRequest:
    """An answered request.

    `served_name` is None where the model was unknown; `status` is 499 where the client left; `reason` is the error's.
    """

    context: RequestContext
    endpoint: str
    served_name: str | None
    outcome: RequestOutcome
    status: int
    reason: str | None
    duration_s: float


class GenerationObserver(Protocol):
    """Callbacks for generations; they run on the event loop, so they must be fast."""

    def generation_started(self, lora_name: str | None) -> None: ...

    def generation_finished(self, record: GenerationRecord) -> None: ...


class RequestObserver(Protocol):
    """Who wants to know of answered requests; called on the event loop, so it must be quick."""

    def request_finished(self, record: AnsweredRequest) -> None: ...


class Observers:
    """Tells each of several observers, in their order; what one of them gets wrong is not the client's error."""

    def __init__(self, failures: Failures | None = None) -> None:
        self.failures = failures or Failures()
        self.of_generations: list[GenerationObserver] = []
        self.of_requests: list[RequestObserver] = []

    def generation_started(self, lora_name: str | None) -> None:
        self._tell(
            self.of_generations, "start of a generation", lambda observer: observer.generation_started(lora_name)
        )

    def generation_finished(self, record: GenerationRecord) -> None:
        self._tell(self.of_generations, "end of a generation", lambda each: each.generation_finished(record))

    def request_finished(self, record: AnsweredRequest) -> None:
        self._tell(self.of_requests, "end of a request", lambda each: each.request_finished(record))

    def _tell(self, observers: Iterable[ObserverT], moment: str, tell: Callable[[ObserverT], None]) -> None:
        for observer in observers:
            try:
                tell(observer)
            except Exception as error:  # boundary
                self.failures.note("observers", error, f"{type(observer).__name__} failed at the {moment}")
