"""Results of evaluations as events: what they say, which trace they belong to, and that they are sent."""

import asyncio
import logging
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve.observe.evaluation_events import Seldom
from serve.observe.tracing import Tracing, otlp_tracing
from serve.records import AnsweredRequest, EvaluationResult
from tests.narrowing import not_none
from tests.otlp_collector import collector
from tests.serve.observe.test_tracing import ENDED_NS, request

GRADE = EvaluationResult("judge", "medical@3", 0.75, explanation="Right.", request_id="r-1")
ANSWER = EvaluationResult("exact_match", "medical@3", 1.0, "pass", response_id="chatcmpl-7")


async def run_with(tracing: Tracing, *ended: AnsweredRequest | EvaluationResult) -> None:
    running = asyncio.create_task(tracing.run())
    await asyncio.sleep(0)
    for each in ended:
        tracing.evaluated(each) if isinstance(each, EvaluationResult) else tracing.request_finished(each)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def shown(*ended: AnsweredRequest | EvaluationResult) -> tuple[list[ReadableLogRecord], tuple[ReadableSpan, ...]]:
    """Events and spans, as a collector gets them."""
    records, spans = InMemoryLogRecordExporter(), InMemorySpanExporter()
    provider, events = TracerProvider(shutdown_on_exit=False), LoggerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    events.add_log_record_processor(SimpleLogRecordProcessor(records))
    asyncio.run(run_with(Tracing(provider, events=events, clock_ns=lambda: ENDED_NS), *ended))
    return list(records.get_finished_logs()), spans.get_finished_spans()


def attributes_of(result: EvaluationResult) -> dict[str, Any]:
    ((record,), _) = shown(result)
    return dict(not_none(record.log_record.attributes))


def test_an_answers_score_is_an_event_of_the_conventions() -> None:
    ((record,), _) = shown(ANSWER)
    assert record.log_record.event_name == "gen_ai.evaluation.result"
    assert record.log_record.timestamp == ENDED_NS
    assert dict(not_none(record.log_record.attributes)) == {
        "gen_ai.evaluation.name": "exact_match",
        "gen_ai.evaluation.score.value": 1.0,
        "gen_ai.evaluation.score.label": "pass",
        "gen_ai.response.id": "chatcmpl-7",
        "gen_ai.response.model": "medical@3",
        "lorikeet.adapter": "medical",
        "lorikeet.version": 3,
    }


def test_a_grade_belongs_to_the_trace_of_the_request_that_it_is_of() -> None:
    ((record,), spans) = shown(request(), GRADE)
    (whole,) = [span for span in spans if span.name == "chat medical@3"]
    assert (record.log_record.trace_id, record.log_record.span_id) == (whole.context.trace_id, whole.context.span_id)
    attributes = not_none(record.log_record.attributes)
    assert attributes["gen_ai.evaluation.explanation"] == "Right."
    assert attributes["lorikeet.request_id"] == "r-1"


def test_a_grade_of_a_request_that_nobody_remembers_has_no_trace() -> None:
    ((record,), _) = shown(GRADE)
    assert not record.log_record.trace_id


def test_a_verdict_without_a_score_has_its_label_and_reason() -> None:
    attributes = attributes_of(EvaluationResult("canary_verdict", "medical@3", None, "hold", "no pair yet"))
    assert "gen_ai.evaluation.score.value" not in attributes
    assert attributes["gen_ai.evaluation.score.label"] == "hold"
    assert attributes["gen_ai.evaluation.explanation"] == "no pair yet"


def test_the_base_has_no_version() -> None:
    assert "lorikeet.version" not in attributes_of(EvaluationResult("judge", "base", 0.5))


@pytest.mark.anyio
async def test_events_reach_the_collectors_log_records_when_the_server_stops() -> None:
    with collector() as (endpoint, taken):
        await run_with(otlp_tracing(endpoint), request(), GRADE)
    (record,) = taken.log_records
    assert record.event_name == "gen_ai.evaluation.result"
    spans = [span for sent in taken.traces for span in sent.resource_spans[0].scope_spans[0].spans]
    assert record.span_id in {span.span_id for span in spans}


@pytest.mark.anyio
async def test_an_address_of_another_form_gets_no_events_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="serve.observe.tracing"), collector() as (endpoint, taken):
        await run_with(otlp_tracing(endpoint.replace("/v1/traces", "/intake")), GRADE)
    assert taken.logs == []
    assert "does not end in /v1/traces" in caplog.text


def test_a_collector_without_log_records_costs_one_line_an_hour() -> None:
    now_s = [0.0]
    seldom, line = Seldom(lambda: now_s[0]), logging.makeLogRecord({"msg": "404"})
    assert [seldom.filter(line), seldom.filter(line)] == [True, False]
    now_s[0] = 3600.0
    assert seldom.filter(line)
