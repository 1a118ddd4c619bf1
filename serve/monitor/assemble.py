"""Build the quality monitor: its observers of traffic and its background loops."""

from dataclasses import dataclass

from config.home import Home
from config.monitor import PRIVACIES_WITH_TEXT
from config.serve import ServeConfig
from quality.samples.store import QualityStore
from serve.monitor.drift import DriftMonitor
from serve.monitor.embedding import Embedder
from serve.monitor.judge.judges import judge_answers
from serve.monitor.monitor import Monitor
from serve.monitor.protocol import MonitoredServer
from serve.monitor.sampler import Sampler, tenant_key
from serve.monitor.trial.canaries import watch_canaries


@dataclass(frozen=True)
class MonitorStorage:
    """Storage of the monitor, and its secrets."""

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


def assemble_monitor(config: ServeConfig, storage: MonitorStorage, server: MonitoredServer) -> Monitor:
    """All of it that the configuration asks for."""
    quality, store, metrics = config.quality, storage.store, server.metrics
    monitor = Monitor(server.engine, metrics.quality, quality.logprob_rate, metrics.failures)
    sampler = Sampler(quality, store, metrics, base_name=config.served_model_name, tenant_key=storage.tenant_key)
    drift = DriftMonitor(
        server.adapters.folder,
        store,
        metrics,
        server.find_time,
        window=quality.drift_window,
        alpha=quality.drift_alpha,
        embedder=storage.embedder,
    )
    monitor.observers.of_generations += [sampler, drift]
    monitor.loops += [sampler.run, drift.run]
    if quality.privacy in PRIVACIES_WITH_TEXT:
        monitor.give_feedback = sampler.give_feedback
    watch_canaries(config, server, store, monitor, storage.tenant_key)
    monitor.loops += judge_answers(
        config, server.engine, server.versions, server.adapters, store, metrics, storage.judge_key
    )
    return monitor
