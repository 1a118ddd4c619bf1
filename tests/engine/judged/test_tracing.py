"""Traces of the real engine's answers reach a collector by OTLP, with the client's own trace as their parent."""

import time
from collections.abc import Sequence

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.judged_server import JudgedServer
from tests.live_server import BASE_NAME, chat, publish_copy

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TRACED = "colours-traced"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def test_spans_of_the_engines_phases_reach_a_collector(judged: JudgedServer) -> None:
    publish_copy(judged.store, "colours", TRACED)  # which nobody has loaded yet
    answers = [
        httpx.post(
            f"{judged.url}/v1/chat/completions",
            json=chat(model),
            headers={"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"},
            timeout=120,
        ).json()
        for model in (TRACED, BASE_NAME)
    ]
    spans, deadline = spans_of_the_trace(judged), time.monotonic() + 60
    while len(roots_of(spans)) < len(answers) and time.monotonic() < deadline:
        time.sleep(0.5)
        spans = spans_of_the_trace(judged)
    roots = roots_of(spans)
    assert [root.name for root in roots] == [f"chat {TRACED}@1", f"chat {BASE_NAME}"]
    assert [tokens_of(root) for root in roots] == [answer["usage"]["completion_tokens"] for answer in answers]
    cold, base = (phases_of(root, spans) for root in roots)
    assert cold == ["resolve", "admit", "load", "queue", "prefill", "decode"]
    assert base == ["resolve", "admit", "queue", "prefill", "decode"]


def spans_of_the_trace(judged: JudgedServer) -> list[Span]:
    return [span for span in judged.taken.spans if span.trace_id.hex() == TRACE_ID]


def roots_of(spans: Sequence[Span]) -> list[Span]:
    """In the order of their starts."""
    roots = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    return sorted(roots, key=lambda root: root.start_time_unix_nano)


def tokens_of(root: Span) -> int:
    tokens: int
    (tokens,) = (at.value.int_value for at in root.attributes if at.key == "gen_ai.usage.output_tokens")
    return tokens


def phases_of(root: Span, spans: Sequence[Span]) -> list[str]:
    """Names of the spans in it, which none of them leaves, in the order of their starts."""
    parts = [span for span in spans if span.parent_span_id == root.span_id]
    assert all(root.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano for part in parts)
    return [part.name for part in sorted(parts, key=lambda part: part.start_time_unix_nano)]
