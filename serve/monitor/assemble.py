"""The quality monitor, put together: who watches the traffic, and the loops beside the server."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from adapters.store import AdapterStore
from config.home import Home
from config.schema import ServeConfig
from quality.store import QualityStore
from serve.metrics import ServeMetrics
from serve.monitor.drift import DriftMonitor
from serve.monitor.embedding import Embedder
from serve.monitor.sampler import Sampler, tenant_key
from serve.observers import Observers

Loop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Keeping:
    """Where the monitor keeps what it sees, and what it must not tell."""

    store: QualityStore
    tenant_key: bytes
    judge_key: str | None = None
    embedder: Embedder | None = None


def open_keeping(config: ServeConfig, home: Home, judge_key: str | None = None) -> Keeping | None:
    """None where the monitor is off.

    Args:
        judge_key: The API key of the judge's endpoint.

    Raises:
        QualityStoreError: The file of samples cannot be used.
        ConfigError: A package is missing for what the configuration asks for.
    """
    if not config.quality.enabled:
        return None
    model = config.quality.drift_embedding
    embedder = Embedder(model, (home.bases / config.base).resolve()) if model is not None else None
    return Keeping(QualityStore(home.quality), tenant_key(home.quality_key), judge_key, embedder)


def assemble_monitor(
    config: ServeConfig,
    keeping: Keeping,
    adapters: AdapterStore,
    metrics: ServeMetrics,
    observers: Observers,
) -> list[Loop]:
    """Add what watches the traffic to the observers; the loops that run beside the server."""
    quality = config.quality
    sampler = Sampler(
        quality, keeping.store, metrics, base_name=config.served_model_name, tenant_key=keeping.tenant_key
    )
    drift = DriftMonitor(
        adapters.folder,
        keeping.store,
        metrics,
        window=quality.drift_window,
        alpha=quality.drift_alpha,
        embedder=keeping.embedder,
    )
    observers.of_generations += [sampler, drift]
    return [sampler.run, drift.run]
