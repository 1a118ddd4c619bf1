"""OpenTelemetry's names for generative AI in the scrape: units, attributes and what counts."""

from typing import Any

from prometheus_client import CollectorRegistry

from adapters.reference import Target
from serve.observe.genai_metrics import GenAiMetrics
from serve.records import AnsweredRequest, GenerationRecord, RequestContext
from tests.generations import generation

CHAT = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "lorikeet", "gen_ai_request_model": "medical@3"}


def answered(of: GenerationRecord | None = None, **changes: Any) -> AnsweredRequest:
    fields: dict[str, Any] = {
        "context": RequestContext("acme", "r-1"),
        "endpoint": "chat/completions",
        "served_name": "medical@3",
        "outcome": "ok",
        "status": 200,
        "reason": None,
        "duration_s": 1.5,
        "generation": of or generation(),
    }
    return AnsweredRequest(**(fields | changes))


def metrics_after(*records: AnsweredRequest) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = GenAiMetrics(registry)
    for record in records:
        metrics.request_finished(record)
    return registry


def test_an_answer_is_measured_in_seconds_and_tokens() -> None:
    value = metrics_after(answered()).get_sample_value
    assert value("gen_ai_server_request_duration_seconds_sum", CHAT | {"error_type": ""}) == 1.0
    assert value("gen_ai_server_time_to_first_token_seconds_sum", CHAT) == 0.2
    assert value("gen_ai_server_time_per_output_token_seconds_sum", CHAT) == 0.05
    assert value("gen_ai_client_token_usage_sum", CHAT | {"gen_ai_token_type": "input"}) == 40
    assert value("gen_ai_client_token_usage_sum", CHAT | {"gen_ai_token_type": "output"}) == 12


def test_an_error_has_its_type_and_no_tokens() -> None:
    failed = answered(outcome="client_error", status=429, reason="tokens", generation=None)
    registry = metrics_after(failed)
    labels = CHAT | {"error_type": "tokens"}
    assert registry.get_sample_value("gen_ai_server_request_duration_seconds_count", labels) == 1
    assert registry.get_sample_value("gen_ai_client_token_usage_count", CHAT | {"gen_ai_token_type": "input"}) is None


def test_what_clients_invent_is_no_label() -> None:
    registry = metrics_after(answered(served_name=None), answered(endpoint="embeddings"), answered(outcome="cancelled"))
    assert [sample for family in registry.collect() for sample in family.samples] == []


def test_the_operation_follows_the_endpoint() -> None:
    registry = metrics_after(answered(endpoint="completions"), answered(endpoint="responses"))
    text = CHAT | {"gen_ai_operation_name": "text_completion"}
    counts = [registry.get_sample_value("gen_ai_server_time_to_first_token_seconds_count", own) for own in (CHAT, text)]
    assert counts == [1, 1]


def test_a_removed_version_leaves_no_series_and_brings_none_back() -> None:
    registry = CollectorRegistry()
    metrics = GenAiMetrics(registry)
    metrics.request_finished(answered())
    metrics.request_finished(answered(served_name="medical@4"))
    metrics.retire(Target("medical", 3))
    metrics.request_finished(answered())
    models = {sample.labels["gen_ai_request_model"] for family in registry.collect() for sample in family.samples}
    assert models == {"medical@4"}
