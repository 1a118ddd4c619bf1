"""A trace of each request, sent by OTLP: one span for the request, and one for each phase; and results of evaluations.

Spans are made by a thread once a request has ended, from what its record says; the request itself pays for a place in
a queue. They hold no text: names, times, token counts.
"""

import asyncio
import logging
import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve.background import Failures, watch_thread
from serve.observe.evaluation_events import emit, otlp_events
from serve.observe.genai_metrics import OPERATIONS
from serve.observe.logs import tenant_hash
from serve.records import AnsweredRequest, EvaluationResult, GenerationRecord, Phase

logger = logging.getLogger(__name__)

_MAX_QUEUED = 2000
_MAX_KNOWN = 10_000
"""Requests whose spans are remembered, for evaluations of their answers."""
_EXPORT_TIMEOUT_S = 5.0
_NS = 1_000_000_000
_NAMES: Mapping[Phase, str] = {"resolve": "resolve", "admission": "admit", "residency": "load"}

Attributes = dict[str, str | bool | int | float]


class _Part(NamedTuple):
    """One span of a request; times in seconds since its arrival."""

    name: str
    start_s: float
    end_s: float


class Tracing:
    """An observer of requests and evaluations, and the thread that makes spans and events of them.

    Args:
        events: Where results of evaluations go; None: nowhere.
    """

    def __init__(
        self,
        provider: TracerProvider,
        failures: Failures | None = None,
        *,
        events: LoggerProvider | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lorikeet")
        self._event_provider = events
        self._events = events.get_logger("lorikeet") if events is not None else None
        self._failures = failures or Failures()
        self._clock_ns = clock_ns
        self._queue: queue.Queue[tuple[int, AnsweredRequest | EvaluationResult] | None] = queue.Queue(_MAX_QUEUED)
        self._known: OrderedDict[str, SpanContext] = OrderedDict()
        self._num_dropped = 0

    def request_finished(self, record: AnsweredRequest) -> None:
        """Queue a request for the thread; dropped if the queue is full."""
        self._put(record)

    def evaluated(self, result: EvaluationResult) -> None:
        """Queue a result for the thread, likewise."""
        if self._events is not None:
            self._put(result)

    def _put(self, ended: AnsweredRequest | EvaluationResult) -> None:
        try:
            self._queue.put_nowait((self._clock_ns(), ended))
        except queue.Full:
            self._num_dropped += 1

    async def run(self) -> None:
        """Work until cancelled, then send what is left."""
        try:
            await watch_thread(self._work, lambda: self._queue.put(None), "tracing")
        finally:
            await asyncio.to_thread(self._shut_down)

    def _work(self) -> None:
        while (ended := self._queue.get()) is not None:
            try:
                self._show(*ended)
            except Exception as error:  # the thread's boundary: the other requests are shown all the same
                self._failures.note("tracing", error, "Tracing a request failed")

    def _show(self, at_ns: int, ended: AnsweredRequest | EvaluationResult) -> None:
        if isinstance(ended, AnsweredRequest):
            self._known[ended.context.request_id] = trace(self._tracer, at_ns, ended)
            if len(self._known) > (_MAX_KNOWN if self._events is not None else 0):
                self._known.popitem(last=False)
        elif self._events is not None:
            emit(self._events, at_ns, ended, self._known.get(ended.request_id or ""))

    def _shut_down(self) -> None:
        self._provider.shutdown()
        if self._event_provider is not None:
            self._event_provider.shutdown()
        if self._num_dropped:
            logger.warning("%d requests or evaluations were not traced: too many at once", self._num_dropped)


def otlp_tracing(endpoint: str, failures: Failures | None = None) -> Tracing:
    """Traces for a collector, as http://127.0.0.1:4318/v1/traces, and events beside; it need not be there."""
    provider = otlp_provider(endpoint)
    events = otlp_events(endpoint, provider.resource, _EXPORT_TIMEOUT_S)
    if events is None:
        logger.info("Results of evaluations are not sent: `otlp_endpoint` %r does not end in /v1/traces", endpoint)
    return Tracing(provider, failures, events=events)


def otlp_provider(endpoint: str) -> TracerProvider:
    """Sends spans to a collector, from a thread of its own."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "lorikeet"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)))
    return provider


def trace(tracer: Tracer, ended_ns: int, record: AnsweredRequest) -> SpanContext:
    """Make the spans of a request that ended then, nanoseconds since the epoch; returns the whole request's."""
    started_ns = ended_ns - int(record.duration_s * _NS)
    whole = tracer.start_span(
        f"{OPERATIONS.get(record.endpoint, record.endpoint)} {record.served_name or ''}".strip(),
        context=_parent(record),
        kind=SpanKind.SERVER,
        attributes=_attributes(record),
        start_time=started_ns,
    )
    if record.outcome == "server_error":
        whole.set_status(Status(StatusCode.ERROR, record.reason))
    for part in _parts(record):
        span = tracer.start_span(
            part.name, context=set_span_in_context(whole), start_time=started_ns + int(part.start_s * _NS)
        )
        span.end(started_ns + int(part.end_s * _NS))
    whole.end(ended_ns)
    return whole.get_span_context()


def _parent(record: AnsweredRequest) -> Context | None:
    """The client's own span, where it names one (W3C Trace Context); what is no such name is none."""
    given = record.context.traceparent
    return TraceContextTextMapPropagator().extract({"traceparent": given}) if given else None


def _parts(record: AnsweredRequest) -> Iterator[_Part]:
    """The waits before the engine, as they were measured; the engine's phases, laid around the first token."""
    context = record.context
    for phase, name in _NAMES.items():
        if phase in context.phases_s:
            start_s = context.phase_starts_s[phase] - context.started_s
            yield _Part(name, start_s, start_s + context.phases_s[phase])
    if record.generation is not None:
        yield from _engine_parts(record.generation)


def _engine_parts(generation: GenerationRecord) -> Iterator[_Part]:
    """The engine's clock is its own process's: of a phase it tells how long it was, and of the first token when."""
    first_token_s, prefill_s = generation.ttft_s, generation.prefill_s
    if first_token_s is None or prefill_s is None:
        return
    scheduled_s = max(0.0, first_token_s - prefill_s)
    if generation.queue_s is not None:
        yield _Part("queue", max(0.0, scheduled_s - generation.queue_s), scheduled_s)
    yield _Part("prefill", scheduled_s, first_token_s)
    if generation.decode_s is not None:
        yield _Part("decode", first_token_s, first_token_s + generation.decode_s)


def _attributes(record: AnsweredRequest) -> Attributes:
    """Named as OpenTelemetry's semantic conventions name them, where they do."""
    context, generation = record.context, record.generation
    attributes: Attributes = {
        "gen_ai.operation.name": OPERATIONS.get(record.endpoint, record.endpoint),
        "url.path": f"/v1/{record.endpoint}",
        "http.response.status_code": record.status,
        "lorikeet.request_id": context.request_id,
        "lorikeet.tenant": tenant_hash(context.tenant),
        "lorikeet.outcome": record.outcome,
        "lorikeet.is_cold": context.is_cold,
    }
    if record.served_name is not None:
        adapter, _, version = record.served_name.partition("@")
        attributes |= {"gen_ai.response.model": record.served_name, "lorikeet.adapter": adapter}
        attributes |= {"lorikeet.version": int(version)} if version else {}
    if record.reason is not None:
        attributes["error.type"] = record.reason
    if generation is not None:
        attributes |= {
            "gen_ai.usage.input_tokens": generation.num_prompt_tokens,
            "gen_ai.usage.output_tokens": generation.num_completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": generation.num_cached_tokens,
        }
    return attributes
