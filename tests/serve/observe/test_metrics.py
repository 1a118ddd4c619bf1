"""The metrics: what generations, requests and loads leave behind, and that a removed version leaves nothing."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

from adapters.errors import IntegrityError
from adapters.reference import Target
from adapters.scores import Score
from adapters.store.evaluation_records import Evaluation
from adapters.store.manifest import BaseRef, LoraSpec, Manifest
from adapters.store.store import AdapterStore
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.errors import AdapterRefusedError, ParityError
from serve.observe.metrics import ServeMetrics
from serve.records import AnsweredRequest, GenerationRecord, RequestContext
from tests.generations import generation
from tests.serving import make_serving

SCHEMA = {"type": "object", "required": ["chapter"]}
LABELS = {"adapter": "medical", "version": "3"}


def manifest(**changes: object) -> Manifest:
    base, adapter = (Score(value=v, ci_low=v - 0.05, ci_high=v + 0.05, n=240) for v in (0.1, 0.8))
    evaluation = Evaluation(
        metric="exact_match", base=base, adapter=adapter, base_valid_format=base, valid_format=adapter
    )
    made = Manifest(
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
    return Manifest.model_validate(made.model_dump() | changes)


def metrics_after(*records: GenerationRecord) -> CollectorRegistry:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    metrics.adapter_loaded(manifest(), 0.5, 0.02)
    for each in records:
        metrics.generation_started(each.lora_name, "client")
        metrics.generation_finished(each)
    return metrics.registry


def test_a_generation_is_measured_under_its_adapter_and_version() -> None:
    registry = metrics_after(generation())
    assert registry.get_sample_value("lorikeet_ttft_seconds_sum", LABELS) == 0.2
    assert registry.get_sample_value("lorikeet_time_per_output_token_seconds_sum", LABELS) == 0.05
    assert registry.get_sample_value("lorikeet_e2e_latency_seconds_count", LABELS) == 1
    assert registry.get_sample_value("lorikeet_prompt_tokens_total", LABELS) == 40
    assert registry.get_sample_value("lorikeet_cached_prompt_tokens_total", LABELS) == 16
    assert registry.get_sample_value("lorikeet_completion_tokens_total", LABELS) == 12
    assert registry.get_sample_value("lorikeet_requests_in_flight", LABELS) == 0


def test_a_question_of_the_monitor_is_no_traffic() -> None:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    metrics.generation_started("medical@3", "monitor")
    metrics.generation_finished(generation(source="monitor", tenant=None))
    assert metrics.registry.get_sample_value("lorikeet_completion_tokens_total", LABELS) is None
    assert metrics.registry.get_sample_value("lorikeet_requests_in_flight", LABELS) is None


def test_the_base_model_has_no_version() -> None:
    registry = metrics_after(generation(lora_name=None))
    assert registry.get_sample_value("lorikeet_completion_tokens_total", {"adapter": "base", "version": ""}) == 12


def test_answers_are_checked_against_the_domains_format() -> None:
    registry = metrics_after(
        generation(), generation(texts=("Neoplasms, I think",)), generation(texts=('{"code": 2}',))
    )
    assert registry.get_sample_value("lorikeet_answers_checked_total", LABELS) == 3
    assert registry.get_sample_value("lorikeet_answers_valid_format_total", LABELS) == 1


def test_a_cancelled_generation_counts_its_tokens_but_no_latency_and_no_format() -> None:
    registry = metrics_after(generation(outcome="cancelled"))
    assert registry.get_sample_value("lorikeet_completion_tokens_total", LABELS) == 12
    assert registry.get_sample_value("lorikeet_e2e_latency_seconds_count", LABELS) is None
    assert registry.get_sample_value("lorikeet_answers_checked_total", LABELS) is None


def test_a_served_version_shows_its_held_out_accuracy_with_its_interval() -> None:
    registry = metrics_after()
    assert registry.get_sample_value("lorikeet_adapter_held_out_accuracy", LABELS) == 0.8
    assert registry.get_sample_value("lorikeet_adapter_held_out_accuracy_ci_low", LABELS) == 0.75
    assert registry.get_sample_value("lorikeet_adapter_held_out_accuracy_ci_high", LABELS) == 0.8500000000000001
    assert registry.get_sample_value("lorikeet_adapter_held_out_base_accuracy", LABELS) == 0.1
    assert registry.get_sample_value("lorikeet_adapter_parity_error_nats", LABELS) == 0.02


def test_every_phase_of_a_generation_is_measured() -> None:
    registry = metrics_after(generation())
    sums = {name: registry.get_sample_value(f"lorikeet_{name}_seconds_sum", LABELS) for name in ("prefill", "decode")}
    assert sums == {"prefill": 0.15, "decode": 0.6}
    assert registry.get_sample_value("lorikeet_inter_token_latency_seconds_sum", LABELS) == pytest.approx(0.1)
    assert registry.get_sample_value("lorikeet_inter_token_latency_seconds_count", LABELS) == 2


def test_every_choice_counts_under_its_finish_reason() -> None:
    registry = metrics_after(generation(finish_reasons=("stop", "stop", "length")))
    counts = {
        reason: registry.get_sample_value("lorikeet_choices_total", LABELS | {"finish_reason": reason})
        for reason in ("stop", "length")
    }
    assert counts == {"stop": 2, "length": 1}


def request(**changes: object) -> AnsweredRequest:
    context = RequestContext("acme", "r-1", phases_s={"admission": 0.03, "residency": 1.5}, is_cold=True)
    fields: dict[str, object] = {
        "context": context,
        "endpoint": "completions",
        "served_name": "medical@3",
        "outcome": "ok",
        "status": 200,
        "reason": None,
        "duration_s": 2.0,
    }
    return AnsweredRequest(**(fields | changes))  # type: ignore[arg-type]  # fields by name


def requested(*records: AnsweredRequest) -> CollectorRegistry:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    for each in records:
        metrics.request_finished(each)
    return metrics.registry


def test_a_request_is_measured_with_its_waits() -> None:
    registry = requested(request())
    labels = LABELS | {"endpoint": "completions", "outcome": "ok"}
    assert registry.get_sample_value("lorikeet_requests_total", labels) == 1
    assert registry.get_sample_value("lorikeet_admission_wait_seconds_sum", LABELS) == 0.03
    assert registry.get_sample_value("lorikeet_cold_start_seconds_sum", LABELS) == 1.5


def test_a_request_that_found_its_version_resident_is_no_cold_start() -> None:
    registry = requested(request(context=RequestContext("acme", "r-1", phases_s={"residency": 0.0001})))
    assert registry.get_sample_value("lorikeet_cold_start_seconds_count", LABELS) is None


def test_a_throttled_request_counts_under_its_version_and_its_tenant() -> None:
    registry = requested(request(outcome="client_error", status=429, reason="tokens"))
    assert registry.get_sample_value("lorikeet_rejections_total", LABELS | {"reason": "tokens"}) == 1
    tenant = {"tenant": "acme", "reason": "tokens"}
    assert registry.get_sample_value("lorikeet_tenant_throttled_total", tenant) == 1


def test_a_request_for_an_unknown_model_has_no_adapter() -> None:
    registry = requested(request(served_name=None, outcome="client_error", status=404, reason="model_not_found"))
    labels = {"adapter": "", "version": "", "reason": "model_not_found"}
    assert registry.get_sample_value("lorikeet_rejections_total", labels) == 1


def test_tenants_pay_for_their_tokens_and_nobody_for_a_shadow() -> None:
    registry = metrics_after(generation(), generation(tenant=None))
    tokens = {
        kind: registry.get_sample_value("lorikeet_tenant_tokens_total", {"tenant": "acme", "kind": kind})
        for kind in ("prompt", "completion")
    }
    assert tokens == {"prompt": 40, "completion": 12}


def test_a_thousand_tenants_share_a_hundred_and_one_names() -> None:
    contexts = [RequestContext(f"tenant-{number}", "r-1") for number in range(1000)]
    registry = requested(*(request(context=context) for context in contexts))
    samples = {sample.labels["tenant"]: sample.value for sample in samples_of(registry, "lorikeet_tenant_requests")}
    assert len(samples) == 101
    assert (samples["tenant-99"], samples["other"]) == (1, 900)


def samples_of(registry: CollectorRegistry, name: str) -> list[Sample]:
    return [sample for family in registry.collect() if family.name == name for sample in family.samples]


def retired() -> ServeMetrics:
    """Metrics of a version that was used in every way, and then removed while a request for it was in flight."""
    metrics = ServeMetrics(CollectorRegistry(), "base")
    target = Target("medical", 3)
    metrics.adapter_loaded(manifest(), 0.5, 0.02)
    metrics.request_finished(request())
    metrics.generation_started("medical@3", "client")
    metrics.generation_started("medical@3", "client")
    metrics.generation_finished(generation())
    metrics.shadow_finished(target, "ok")
    metrics.golden_replay_finished(target, 0.01, is_ok=True)
    metrics.adapter_unloaded(target)
    metrics.adapter_evicted(target)
    metrics.adapter_retired(target)
    return metrics


def named(registry: CollectorRegistry) -> list[str]:
    families = registry.collect()
    return [
        sample.name for family in families for sample in family.samples if sample.labels.get("adapter") == "medical"
    ]


def test_a_retired_version_leaves_no_series() -> None:
    assert named(retired().registry) == []


def test_what_ends_after_its_version_was_retired_brings_no_series_back() -> None:
    metrics = retired()
    metrics.generation_finished(generation())
    metrics.request_finished(request())
    assert named(metrics.registry) == []


def test_other_versions_keep_their_series() -> None:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    for version in (3, 4):
        metrics.request_finished(request(served_name=f"medical@{version}"))
    metrics.adapter_retired(Target("medical", 3))
    metrics.request_finished(request(served_name="medical@4"))
    (sample,) = samples_of(metrics.registry, "lorikeet_requests")
    assert (sample.labels["version"], sample.value) == ("4", 2)


@pytest.mark.parametrize(
    ("error", "check"),
    [
        (ParityError("wrong scaling"), "parity"),
        (AdapterRefusedError("vLLM does not load it"), "engine"),
        (IntegrityError("changed"), "files"),
    ],
)
def test_a_refusal_says_which_check_failed(error: Exception, check: str) -> None:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    metrics.adapter_refused(Target("medical", 3), error)
    assert metrics.registry.get_sample_value("lorikeet_adapter_refusals_total", LABELS | {"check": check}) == 1


def test_nothing_is_resident_in_an_engine_that_died() -> None:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    metrics.engine_started(2.0)
    metrics.adapter_loaded(manifest(), 0.5, None)
    metrics.engine_died()
    values = {
        name: metrics.registry.get_sample_value(f"lorikeet_{name}") for name in ("ready", "engine_restarts_total")
    }
    assert values == {"ready": 0, "engine_restarts_total": 1}
    assert metrics.registry.get_sample_value("lorikeet_adapter_resident", LABELS) == 0


@pytest.mark.anyio
async def test_a_version_that_makes_room_is_evicted_and_no_longer_resident(
    store: AdapterStore, base_folder: Path
) -> None:
    serving = make_serving(store, base_folder, max_loras=1, max_cpu_loras=1)
    for name in ("a", "b"):
        serving.publish(name)
        await serving.residency.load(Target(name, 1))
    values = {
        name: (
            serving.metrics.registry.get_sample_value("lorikeet_adapter_resident", {"adapter": name, "version": "1"}),
            serving.metrics.registry.get_sample_value(
                "lorikeet_adapter_evictions_total", {"adapter": name, "version": "1"}
            ),
        )
        for name in ("a", "b")
    }
    assert values == {"a": (0, 1), "b": (1, None)}
    assert serving.metrics.registry.get_sample_value("lorikeet_adapters_resident_limit") == 1


@pytest.mark.anyio
async def test_a_refused_key_is_counted_under_no_adapter(
    store: AdapterStore, base_folder: Path, tmp_path: Path
) -> None:
    create_key(tmp_path / "keys.json", KeyGrant(tenant="acme"), now=datetime.now(UTC))
    serving = make_serving(store, base_folder, keys=KeyRing(tmp_path / "keys.json"))
    async with serving.client("lk-" + "x" * 43) as client:
        await client.get("/v1/models")
    labels = {"adapter": "", "version": "", "reason": "invalid_api_key"}
    assert serving.metrics.registry.get_sample_value("lorikeet_rejections_total", labels) == 1
