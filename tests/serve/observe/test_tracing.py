"""A request's trace: which spans there are, when they were, what they say, and that they are sent."""

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from adapters.store.store import AdapterStore
from serve.observe.tracing import Tracing, otlp_tracing
from serve.records import AnsweredRequest, RequestContext
from tests.generations import generation
from tests.narrowing import not_none
from tests.otlp_collector import collector
from tests.serving import make_serving

ENDED_NS = 1_800_000_000_000_000_000
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def request(**changes: Any) -> AnsweredRequest:
    """Two seconds: 0.1 to be resolved, 0.2 for a turn, 0.5 for a load, then a first token after 1.2 s."""
    context = RequestContext(
        "acme",
        "r-1",
        started_s=100.0,
        phases_s={"resolve": 0.1, "admission": 0.2, "residency": 0.5},
        phase_starts_s={"resolve": 100.0, "admission": 100.1, "residency": 100.3},
        is_cold=True,
        traceparent=changes.pop("traceparent", None),
    )
    fields: dict[str, Any] = {
        "endpoint": "chat/completions",
        "served_name": "medical@3",
        "outcome": "ok",
        "status": 200,
        "reason": None,
        "generation": generation(ttft_s=1.2, queue_s=0.1, prefill_s=0.2, decode_s=0.75),
        "duration_s": 2.0,
    }
    return AnsweredRequest(context, **(fields | changes))


def spans_of(*records: AnsweredRequest) -> dict[str, ReadableSpan]:
    """By name, as a collector gets them."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, clock_ns=lambda: ENDED_NS)

    async def serve() -> None:
        running = asyncio.create_task(tracing.run())
        await asyncio.sleep(0)
        for record in records:
            tracing.request_finished(record)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(serve())
    return {span.name: span for span in exporter.get_finished_spans()}


def seconds_of(time_ns: int | None) -> float:
    """Since the request of `request` came."""
    return round((not_none(time_ns) - ENDED_NS) / 1e9 + 2, 3)


def test_a_request_has_a_span_for_each_of_its_waits_and_works() -> None:
    spans = spans_of(request())
    times_s = {name: (seconds_of(span.start_time), seconds_of(span.end_time)) for name, span in spans.items()}
    assert times_s == {
        "chat medical@3": (0.0, 2.0),
        "resolve": (0.0, 0.1),
        "admit": (0.1, 0.3),
        "load": (0.3, 0.8),
        "queue": (0.9, 1.0),
        "prefill": (1.0, 1.2),
        "decode": (1.2, 1.95),
    }
    whole = spans.pop("chat medical@3")
    assert {not_none(span.parent).span_id for span in spans.values()} == {whole.context.span_id}


def test_a_span_says_whose_answer_it_was_and_holds_no_text() -> None:
    attributes = not_none(spans_of(request())["chat medical@3"].attributes)
    assert attributes["gen_ai.response.model"] == "medical@3"
    assert (attributes["lorikeet.adapter"], attributes["lorikeet.version"]) == ("medical", 3)
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (40, 12)
    assert (attributes["lorikeet.request_id"], attributes["lorikeet.is_cold"]) == ("r-1", True)
    assert not any("Neoplasms" in str(value) or "acme" in str(value) for value in attributes.values())


def test_a_clients_own_trace_goes_on() -> None:
    whole = spans_of(request(traceparent=TRACEPARENT))["chat medical@3"]
    assert f"{whole.context.trace_id:032x}-{not_none(whole.parent).span_id:016x}" in TRACEPARENT


@pytest.mark.parametrize("header", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ü"])
def test_a_header_that_names_no_trace_begins_a_new_one(header: str) -> None:
    assert spans_of(request(traceparent=header))["chat medical@3"].parent is None


def test_a_request_that_failed_early_has_a_span_with_its_error() -> None:
    context = RequestContext("acme", "r-2")
    failed = AnsweredRequest(context, "completions", None, "server_error", 503, "not_ready", 0.1)
    spans = spans_of(failed)
    assert list(spans) == ["text_completion"]
    assert spans["text_completion"].status.status_code is StatusCode.ERROR
    assert not_none(spans["text_completion"].attributes)["error.type"] == "not_ready"


@pytest.mark.anyio
async def test_a_server_knows_when_each_phase_began(store: AdapterStore, base_folder: Any) -> None:
    serving = make_serving(store, base_folder)
    serving.publish("medical")
    async with serving.client() as client:
        await client.post(
            "/v1/completions", json={"model": "medical", "prompt": "x"}, headers={"traceparent": TRACEPARENT}
        )
    (finished,) = serving.finished.requests
    context = finished.context
    assert context.traceparent == TRACEPARENT
    starts_s = [context.started_s, *(context.phase_starts_s[phase] for phase in ("resolve", "admission", "residency"))]
    assert starts_s == sorted(starts_s)


@pytest.mark.anyio
async def test_spans_reach_a_collector_at_the_latest_when_the_server_stops() -> None:
    with collector() as (endpoint, taken):
        tracing = otlp_tracing(endpoint)
        running = asyncio.create_task(tracing.run())
        await asyncio.sleep(0)
        tracing.request_finished(request())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    (sent,) = taken.traces
    names = {span.name for span in sent.resource_spans[0].scope_spans[0].spans}
    assert names == {"chat medical@3", "resolve", "admit", "load", "queue", "prefill", "decode"}
