"""The metrics: what one generation and one load leave behind."""

from prometheus_client import CollectorRegistry

from adapters.manifest import BaseRef, Evaluation, LoraSpec, Manifest, Score
from serve.metrics import ServeMetrics
from serve.parity import Parity
from serve.records import GenerationRecord

SCHEMA = {"type": "object", "required": ["chapter"]}
LABELS = {"adapter": "medical", "version": "3"}


def manifest() -> Manifest:
    base, adapter = (Score(value=v, ci_low=v - 0.05, ci_high=v + 0.05, n=240) for v in (0.1, 0.8))
    evaluation = Evaluation(
        metric="exact_match", base=base, adapter=adapter, base_valid_format=base, valid_format=adapter
    )
    return Manifest(
        name="medical",
        version=3,
        base=BaseRef(name="tiny", digest="d" * 64, quantization="nf4"),
        lora=LoraSpec(lora_r=2, lora_alpha=4, target_modules=("q_proj",), num_modules=1),
        answer_schema=SCHEMA,
        evaluation=evaluation,
        digest="a" * 64,
        files=(),
        created_at="2026-11-21T00:00:00+00:00",
    )


def record(lora_name: str | None = "medical@3", **changes: object) -> GenerationRecord:
    fields: dict[str, object] = {
        "lora_name": lora_name,
        "tenant": "acme",
        "outcome": "ok",
        "queue_s": 0.01,
        "prefill_s": 0.15,
        "decode_s": 0.6,
        "ttft_s": 0.2,
        "tpot_s": 0.05,
        "itl_s": (0.04, 0.06),
        "e2e_s": 1.0,
        "num_prompt_tokens": 40,
        "num_cached_tokens": 16,
        "num_completion_tokens": 12,
        "finish_reasons": ("stop",),
        "texts": ('{"chapter": "Neoplasms"}',),
    }
    return GenerationRecord(**(fields | changes))  # type: ignore[arg-type]  # fields by name


def metrics_after(*records: GenerationRecord) -> CollectorRegistry:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    metrics.adapter_loaded(manifest(), 0.5, Parity(0.02, 0.01))
    for each in records:
        metrics.generation_started(each.lora_name)
        metrics.generation_finished(each)
    return metrics.registry


def test_a_generation_is_measured_under_its_adapter_and_version() -> None:
    registry = metrics_after(record())
    assert registry.get_sample_value("lorikeet_ttft_seconds_sum", LABELS) == 0.2
    assert registry.get_sample_value("lorikeet_time_per_output_token_seconds_sum", LABELS) == 0.05
    assert registry.get_sample_value("lorikeet_e2e_latency_seconds_count", LABELS) == 1
    assert registry.get_sample_value("lorikeet_prompt_tokens_total", LABELS) == 40
    assert registry.get_sample_value("lorikeet_cached_prompt_tokens_total", LABELS) == 16
    assert registry.get_sample_value("lorikeet_completion_tokens_total", LABELS) == 12
    assert registry.get_sample_value("lorikeet_requests_in_flight", LABELS) == 0


def test_the_base_model_has_no_version() -> None:
    registry = metrics_after(record(lora_name=None))
    assert registry.get_sample_value("lorikeet_completion_tokens_total", {"adapter": "base", "version": ""}) == 12


def test_answers_are_checked_against_the_domains_format() -> None:
    registry = metrics_after(record(), record(texts=("Neoplasms, I think",)), record(texts=('{"code": 2}',)))
    assert registry.get_sample_value("lorikeet_answers_checked_total", LABELS) == 3
    assert registry.get_sample_value("lorikeet_answers_valid_format_total", LABELS) == 1


def test_a_cancelled_generation_counts_its_tokens_but_no_latency_and_no_format() -> None:
    registry = metrics_after(record(outcome="cancelled"))
    assert registry.get_sample_value("lorikeet_completion_tokens_total", LABELS) == 12
    assert registry.get_sample_value("lorikeet_e2e_latency_seconds_count", LABELS) is None
    assert registry.get_sample_value("lorikeet_answers_checked_total", LABELS) is None


def test_a_served_version_shows_its_held_out_accuracy_with_its_interval() -> None:
    registry = metrics_after()
    assert registry.get_sample_value("lorikeet_adapter_heldout_accuracy", LABELS) == 0.8
    assert registry.get_sample_value("lorikeet_adapter_heldout_accuracy_ci_low", LABELS) == 0.75
    assert registry.get_sample_value("lorikeet_adapter_heldout_accuracy_ci_high", LABELS) == 0.8500000000000001
    assert registry.get_sample_value("lorikeet_adapter_heldout_base_accuracy", LABELS) == 0.1
    assert registry.get_sample_value("lorikeet_adapter_parity_error_nats", LABELS) == 0.02
