"""State of a running request, what the engine makes of it, and records of finished generations and requests."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from quality.samples.records import Turn
from serve.background import Failures

GenerationOutcome = Literal["ok", "cancelled", "error", "lost"]
"""Lost: the engine died, for which the version is not responsible."""
RequestOutcome = Literal["ok", "cancelled", "client_error", "server_error"]
Phase = Literal["body", "resolve", "admission", "residency"]
Source = Literal["client", "batch", "shadow", "monitor"]

ObserverT = TypeVar("ObserverT")


@dataclass(frozen=True)
class Caller:
    """Who asks the engine, and since when, on the clock of `time.perf_counter`.

    Only clients and their batches count as traffic. `tenant` and `request_id` are None where no client asked.
    """

    source: Source
    tenant: str | None = None
    request_id: str | None = None
    started_s: float | None = None


@dataclass
class RequestResult:
    """What the engine made of one request. Its caller creates it, and `Engine.answer` fills it in.

    `num_tokens` counts prompts and completions of all its generations; `generation` is the last one that ended.
    """

    num_tokens: int = 0
    generation: "GenerationRecord | None" = None

    def add(self, record: "GenerationRecord") -> None:
        """A generation has ended."""
        self.num_tokens += record.num_prompt_tokens + record.num_completion_tokens
        self.generation = record


@dataclass
class RequestContext:
    """Whose request it is, and what it went through before the engine.

    `started_s` is when the body was there, before that when the request came: a slow upload is not the server's;
    `phases_s` holds what comes before the engine, in seconds, and `phase_starts_s` when it began, on the clock of
    `started_s`; `traceparent` is the client's header; `sticky_key` is what chose between stable and canary, None where
    the client named a version: the request id where it is nobody's; `source` is `batch` where no client waits for it.
    """

    tenant: str
    request_id: str
    started_s: float = field(default_factory=time.perf_counter)
    phases_s: dict[Phase, float] = field(default_factory=dict)
    phase_starts_s: dict[Phase, float] = field(default_factory=dict)
    is_cold: bool = False
    traceparent: str | None = None
    sticky_key: str | None = None
    source: Source = "client"

    @property
    def caller(self) -> Caller:
        return Caller(self.source, self.tenant, self.request_id, self.started_s)

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
    messages: tuple[Turn, ...] = ()
    """The conversation of the request; empty where it held more than text, or was none."""
    response_id: str | None = None
    """`id` of the answer, as the client got it."""


@dataclass(frozen=True)
class AnsweredRequest:
    """An answered request.

    `served_name` is None where the model was unknown; `status` is 499 where the client left; `reason` is the error's;
    `generation` is the last one that the engine ended for it.
    """

    context: RequestContext
    endpoint: str
    served_name: str | None
    outcome: RequestOutcome
    status: int
    reason: str | None
    duration_s: float
    generation: GenerationRecord | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """A score that the quality monitor gave to an answer of a version, or its verdict on a canary.

    `name` is the metric, `judge`, `judge_preference` or `canary_verdict`; `score` is 0 to 1, of a verdict the canary's
    mean score minus stable's, None without one; `label` is one of few words. `request_id` is the client's request
    whose answer it was, `response_id` the `id` of the answer.
    """

    name: str
    lora_name: str
    score: float | None
    label: str | None = None
    explanation: str | None = None
    request_id: str | None = None
    response_id: str | None = None


class EvaluationListeners:
    """Tells each listener of a result; what one of them gets wrong harms no evaluation."""

    def __init__(self, failures: Failures) -> None:
        self.listeners: list[Callable[[EvaluationResult], None]] = []
        self._failures = failures

    def tell(self, result: EvaluationResult) -> None:
        for listener in self.listeners:
            try:
                listener(result)
            except Exception as error:  # boundary
                self._failures.note("observers", error, "A listener of evaluations failed")


class GenerationObserver(Protocol):
    """Callbacks for generations; they run on the event loop, so they must be fast."""

    def generation_started(self, lora_name: str | None, source: Source) -> None: ...

    def generation_finished(self, record: GenerationRecord) -> None: ...


class RequestObserver(Protocol):
    """Who wants to know of answered requests; called on the event loop, so it must be quick."""

    def request_finished(self, record: AnsweredRequest) -> None: ...


class TrafficObserver(GenerationObserver, RequestObserver, Protocol):
    """Who wants to know of both."""


class Observers:
    """Tells each of several observers, in their order; what one of them gets wrong is not the client's error."""

    def __init__(self, failures: Failures | None = None) -> None:
        self.failures = failures or Failures()
        self.of_generations: list[GenerationObserver] = []
        self.of_requests: list[RequestObserver] = []

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        self._tell(
            self.of_generations, "start of a generation", lambda each: each.generation_started(lora_name, source)
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
