"""A span for each request in the ingress: around the replica's own, with every replica that was asked."""

from collections.abc import AsyncIterator
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.requests import Request

from serve.cluster.relay import Batch

_TRACEPARENT = b"traceparent"
_CARRIER = TraceContextTextMapPropagator()


class IngressSpan:
    """One request's span, from its body to the end of its answer. Without a provider it does nothing."""

    def __init__(self, provider: TracerProvider | None, request: Request, model: str) -> None:
        self._span: Span | None = None
        if provider is not None:
            attributes = {"gen_ai.request.model": model} if model else {}
            self._span = provider.get_tracer("lorikeet").start_span(
                f"ingress {request.url.path}", context=_parent(request), kind=SpanKind.SERVER, attributes=attributes
            )

    def scope(self, scope: dict[str, Any]) -> dict[str, Any]:
        """A request's scope, whose parent is this span."""
        if self._span is None:
            return scope
        carrier: dict[str, str] = {}
        _CARRIER.inject(carrier, set_span_in_context(self._span))
        headers = [(name, value) for name, value in scope["headers"] if bytes(name).lower() != _TRACEPARENT]
        return scope | {"headers": [*headers, (_TRACEPARENT, carrier["traceparent"].encode())]}

    def note(self, event: str) -> None:
        """Something that happened meanwhile."""
        if self._span is not None:
            self._span.add_event(event)

    def end(self, status: int | None, error: BaseException | None = None) -> None:
        """The first call counts.

        Args:
            status: Of the answer; None if there was none.
        """
        if self._span is None:
            return
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if error is not None or (status or 0) >= 500:
            self._span.set_status(Status(StatusCode.ERROR, None if error is None else type(error).__name__))
        self._span.end()
        self._span = None

    async def around(self, status: int, rest: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
        """The rest of an answer; the span ends with it."""
        try:
            async for batch in rest:
                yield batch
        except BaseException as error:
            self.end(status, error)
            raise
        finally:
            self.end(status)


def _parent(request: Request) -> Context | None:
    given = request.headers.get("traceparent")
    return _CARRIER.extract({"traceparent": given}) if given else None
