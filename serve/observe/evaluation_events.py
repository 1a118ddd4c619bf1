"""Results of evaluations as OpenTelemetry's `gen_ai.evaluation.result` events, sent by OTLP as log records."""

import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

from opentelemetry._logs import Logger
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context

from serve.records import EvaluationResult

_EVENT = "gen_ai.evaluation.result"
_TRACES, _LOGS = "/v1/traces", "/v1/logs"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http._log_exporter"
_QUIET_S = 3600.0


def emit(events: Logger, at_ns: int, result: EvaluationResult, evaluated: SpanContext | None) -> None:
    """Send one event.

    Args:
        at_ns: When the score was known, nanoseconds since the epoch.
        evaluated: The span of the request whose answer it was, where it is known.
    """
    context = None if evaluated is None else set_span_in_context(NonRecordingSpan(evaluated))
    events.emit(timestamp=at_ns, context=context, attributes=_attributes(result), event_name=_EVENT)


def otlp_events(endpoint: str, resource: Resource, timeout_s: float) -> LoggerProvider | None:
    """Events for the collector of an endpoint of traces; None where its address does not tell that of log records."""
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

    parts = urlsplit(endpoint)
    if not parts.path.endswith(_TRACES):
        return None
    logs = urlunsplit(parts._replace(path=parts.path.removesuffix(_TRACES) + _LOGS))
    logging.getLogger(_EXPORTER).addFilter(Seldom())
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(logs, timeout=timeout_s)))
    return provider


class Seldom(logging.Filter):
    """One line an hour: a collector of traces alone refuses each batch of log records."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last_s = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        is_due = self._clock() - self._last_s >= _QUIET_S
        if is_due:
            self._last_s = self._clock()
        return is_due


def _attributes(result: EvaluationResult) -> dict[str, str | float | int]:
    """Named as OpenTelemetry's semantic conventions name them, where they do."""
    adapter, _, version = result.lora_name.partition("@")
    given: dict[str, str | float | int | None] = {
        "gen_ai.evaluation.name": result.name,
        "gen_ai.evaluation.score.value": result.score,
        "gen_ai.evaluation.score.label": result.label,
        "gen_ai.evaluation.explanation": result.explanation,
        "gen_ai.response.id": result.response_id,
        "gen_ai.response.model": result.lora_name,
        "lorikeet.request_id": result.request_id,
        "lorikeet.adapter": adapter,
        "lorikeet.version": int(version) if version else None,
    }
    return {name: value for name, value in given.items() if value is not None}
