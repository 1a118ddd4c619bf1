"""The quality monitor, put together: who watches the traffic, and the loops beside the server."""

from collections.abc import Callable
from dataclasses import dataclass

from adapters.store.store import AdapterStore
from config.home import Home
from config.schema import ServeConfig
from quality.samples.store import QualityStore
from serve.engine.protocol import Engine
from serve.monitor.drift import DriftMonitor
from serve.monitor.embedding import Embedder
from serve.monitor.judge.judges import judge_answers
from serve.monitor.monitor import Monitor
from serve.monitor.sampler import Sampler, tenant_key
from serve.monitor.trial.canaries import watch_canaries
from serve.observe.metrics import ServeMetrics
from serve.residency.residency import Residency


@dataclass(frozen=True)
class MonitorStorage:
    """Where the monitor keeps what it sees, and what it must not tell."""

    store: QualityStore
    tenant_key: bytes
    judge_key: str | None = None
    embedder: Embedder | None = None


def open_storage(config: ServeConfig, home: Home, judge_key: str | None = None) -> MonitorStorage | None:
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
    return MonitorStorage(QualityStore(home.quality), tenant_key(home.quality_key), judge_key, embedder)


def assemble_monitor(
    config: ServeConfig,
    keeping: MonitorStorage,
    engine: Engine,
    residency: Residency,
    adapters: AdapterStore,
    metrics: ServeMetrics,
    is_busy: Callable[[], bool],
) -> Monitor:
    """All of it that the configuration asks for.

    Args:
        is_busy: Whether clients' requests run.
    """
    quality = config.quality
    monitor = Monitor(engine, metrics.quality, quality.logprob_rate, metrics.failures)
    sampler = Sampler(
        quality, keeping.store, metrics, base_name=config.served_model_name, tenant_key=keeping.tenant_key
    )
    drift = DriftMonitor(
        adapters.folder,
        keeping.store,
        metrics,
        engine,
        window=quality.drift_window,
        alpha=quality.drift_alpha,
        embedder=keeping.embedder,
    )
    monitor.observers.of_generations += [sampler, drift]
    monitor.loops += [sampler.run, drift.run]
    kept = keeping.store
    watch_canaries(config, engine, residency, adapters, kept, metrics, monitor, keeping.tenant_key, is_busy)
    monitor.loops += judge_answers(config, engine, residency, adapters, kept, metrics, keeping.judge_key)
    return monitor
