"""Metrics of the engine's own: what of ours is not in use, and what vLLM's must not hold, series without bound."""

from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

patches_skipped = Gauge(
    "lorikeet_engine_patches_skipped",
    "Places in vLLM whose source is not what our change was written for: vLLM's own is in use there.",
)


def drop_lora_series(stat_loggers: list[Any], registry: CollectorRegistry = REGISTRY) -> None:
    """Take away `vllm:lora_requests_info` and its memory.

    vLLM (0.32) adds a series for every combination of adapters that ever ran together, by names that clients do not
    use. `serve.observe.router_metrics` exports one series of that name at each scrape.
    """
    for stat_logger in stat_loggers:
        gauge = getattr(stat_logger, "gauge_lora_info", None)
        if gauge is not None:
            stat_logger.gauge_lora_info = None
            registry.unregister(gauge)
