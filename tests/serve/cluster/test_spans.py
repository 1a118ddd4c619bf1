"""The ingress' span is the parent of the replica's, in the client's trace."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.requests import Request

from serve.cluster.spans import IngressSpan

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT = "b7ad6b7169203331"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    made = TracerProvider(shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


def request(*headers):
    return Request({"type": "http", "method": "POST", "path": "/v1/completions", "headers": list(headers)})


async def answer(*batches):
    for batch in batches:
        yield batch


async def fail():
    raise ConnectionError("gone")
    yield


async def test_the_replica_is_told_of_the_span_in_the_clients_trace(exporter, provider):
    asked = request((b"traceparent", f"00-{TRACE}-{CLIENT}-01".encode()), (b"host", b"h"))
    span = IngressSpan(provider, asked, "medical")
    told = span.scope(dict(asked.scope))["headers"]
    headers = dict(told)
    span.end(200)
    (ended,) = exporter.get_finished_spans()
    assert headers[b"traceparent"].decode() == f"00-{TRACE}-{ended.context.span_id:016x}-01"
    assert headers[b"host"] == b"h"
    assert len(told) == 2
    assert f"{ended.parent.span_id:016x}" == CLIENT
    assert ended.attributes["gen_ai.request.model"] == "medical"


async def test_the_span_ends_with_the_answer(exporter, provider):
    span = IngressSpan(provider, request(), "")
    batches = span.around(200, answer([{"n": 1}], [{"n": 2}]))
    assert await anext(batches) == [{"n": 1}]
    assert exporter.get_finished_spans() == ()
    assert [batch async for batch in batches] == [[{"n": 2}]]
    (ended,) = exporter.get_finished_spans()
    assert ended.attributes["http.response.status_code"] == 200
    assert ended.status.status_code is StatusCode.UNSET


async def test_an_answer_that_breaks_off_is_an_error(exporter, provider):
    span = IngressSpan(provider, request(), "")
    span.note("a replica ended before it answered")
    with pytest.raises(ConnectionError):
        await anext(span.around(200, fail()))
    (ended,) = exporter.get_finished_spans()
    assert ended.status.status_code is StatusCode.ERROR
    assert [event.name for event in ended.events] == ["a replica ended before it answered"]


async def test_without_a_collector_the_scope_stays_as_it_is():
    asked = request()
    span = IngressSpan(None, asked, "medical")
    assert span.scope(dict(asked.scope)) == dict(asked.scope)
    span.end(200)
