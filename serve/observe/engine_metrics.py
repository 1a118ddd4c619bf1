"""Metrics of the engine as a whole, and of the tasks beside it."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class EngineMetrics:
    """Engine lifecycle metrics, and those of the tasks beside it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = Gauge("lorikeet_ready", "1 when requests are taken.", registry=registry)
        self.start_seconds = Gauge("lorikeet_engine_start_seconds", "Seconds from start to ready.", registry=registry)
        self.restarts = Counter("lorikeet_engine_restarts", "Engines that died.", registry=registry)
        self.background_failures = Counter(
            "lorikeet_background_failures",
            "Failures of loops and tasks beside the server, which go on or start again.",
            ("task",),
            registry=registry,
        )
