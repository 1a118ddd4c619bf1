"""Traces of the real engine's answers reach a collector by OTLP, with the client's own trace as their parent."""

from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from config.home import Home
from loadtest.bench.server import running_server
from tests.live_server import BASE_NAME, chat, write_serve_config
from tests.otlp_collector import collector

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def test_spans_of_the_engines_phases_reach_a_collector(live_home: Home, tmp_path: Path) -> None:
    with collector() as (endpoint, taken):
        config = write_serve_config(tmp_path, cpu_compile=False, otlp_endpoint=endpoint)
        with running_server(config, live_home.root, tmp_path / "serve.log") as server:
            answers = [
                httpx.post(
                    f"{server.url}/v1/chat/completions",
                    json=chat(model),
                    headers={"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"},
                    timeout=120,
                ).json()
                for model in ("colours", BASE_NAME)
            ]
    spans = [
        span
        for sent in taken.traces
        for part in sent.resource_spans
        for scope in part.scope_spans
        for span in scope.spans
    ]
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    roots = {span.name: span for span in spans if span.kind == Span.SPAN_KIND_SERVER}
    assert set(roots) == {"chat colours@1", f"chat {BASE_NAME}"}
    assert [tokens_of(root) for root in roots.values()] == [answer["usage"]["completion_tokens"] for answer in answers]
    cold, base = (phases_of(root, spans) for root in roots.values())
    assert cold == ["resolve", "admit", "load", "queue", "prefill", "decode"]
    assert base == ["resolve", "admit", "queue", "prefill", "decode"]


def tokens_of(root: Span) -> int:
    tokens: int
    (tokens,) = (at.value.int_value for at in root.attributes if at.key == "gen_ai.usage.output_tokens")
    return tokens


def phases_of(root: Span, spans: list[Span]) -> list[str]:
    """Names of the spans in it, which none of them leaves, in the order of their starts."""
    parts = [span for span in spans if span.parent_span_id == root.span_id]
    assert all(root.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano for part in parts)
    return [part.name for part in sorted(parts, key=lambda part: part.start_time_unix_nano)]
