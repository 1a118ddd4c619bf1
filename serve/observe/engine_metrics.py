"""Metrics of the engine as a whole, and of the tasks beside it."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class EngineMetrics:
    """Engine lifecycle metrics, and those of the tasks beside it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = Gauge("lorikeet_ready", "1 while the server accepts requests, else 0.", registry=registry)
        self.start_seconds = Gauge("lorikeet_engine_start_seconds", "Time from start to ready.", registry=registry)
        self.restarts = Counter("lorikeet_engine_restarts", "Engine processes that died.", registry=registry)
        self.background_failures = Counter(
            "lorikeet_background_failures",
            "Failures of background loops and tasks, which continue or are restarted.",
            ("task",),
            registry=registry,
        )
