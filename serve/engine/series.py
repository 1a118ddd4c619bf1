"""What vLLM's own metrics must not hold: series without bound."""

from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry


def drop_lora_series(stat_loggers: list[Any], registry: CollectorRegistry = REGISTRY) -> None:
    """Take away `vllm:lora_requests_info` and its memory.

    vLLM (0.32) adds a series for every combination of adapters that ever ran together. Which ones are resident and
    have requests is told by `lorikeet_adapter_resident` and `lorikeet_requests_in_flight`.
    """
    for stat_logger in stat_loggers:
        gauge = getattr(stat_logger, "gauge_lora_info", None)
        if gauge is not None:
            stat_logger.gauge_lora_info = None
            registry.unregister(gauge)
