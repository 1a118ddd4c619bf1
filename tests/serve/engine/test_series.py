"""vLLM's series without bound are gone."""

from types import SimpleNamespace

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from serve.engine.series import drop_lora_series


def test_the_series_of_combinations_of_adapters_are_gone() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("vllm:lora_requests_info", "Stats.", ("running_lora_adapters",), registry=registry)
    gauge.labels("medical@1,legal@1").set(1)
    logger = SimpleNamespace(gauge_lora_info=gauge)
    drop_lora_series([SimpleNamespace(), SimpleNamespace(gauge_lora_info=None), logger], registry)
    assert logger.gauge_lora_info is None
    assert b"lora_requests_info" not in generate_latest(registry)
