"""Metrics of fine-tuning jobs and batches, read from their database at each scrape."""

import logging
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric

from adapters.jobs.errors import JobsError
from adapters.jobs.figures import BatchFigures, JobFigures

logger = logging.getLogger(__name__)


class _ReadGauge(Gauge):
    """A gauge that has everything read before it is collected."""

    read: Callable[[], None] = staticmethod(lambda: None)

    def collect(self) -> Iterable[Metric]:
        self.read()
        return super().collect()


class BatchMetrics:
    """Of all batches together; `JobMetrics` reads their figures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batches = Gauge("lorikeet_batches", "Batches, by status.", ("status",), registry=registry)
        self.oldest_waiting = Gauge(
            "lorikeet_batches_oldest_waiting_seconds",
            "Age of the oldest unfinished batch that no server works on; 0 if none waits.",
            registry=registry,
        )
        self.lines = Counter(
            "lorikeet_batch_lines",
            "Lines of batches that are done: completed, or failed (an error, expired or cancelled).",
            ("result",),
            registry=registry,
        )

    def show(self, now: BatchFigures, before: BatchFigures | None) -> None:
        """Export figures; counters grow by the difference to those of the scrape before."""
        for status, number in now.by_status.items():
            self.batches.labels(status).set(number)
        self.oldest_waiting.set(now.oldest_waiting_s)
        for result, number in now.lines.items():
            self.lines.labels(result).inc(max(0, number - (before.lines[result] if before else 0)))


class JobMetrics:
    """Without labels of tenants or jobs, so that there are never more series than statuses and phases.

    Counters are counted by how much the database's sums have grown: a job that another process ends is counted too.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        # The first one that a scrape collects reads the figures for all.
        self.jobs = _ReadGauge("lorikeet_jobs", "Fine-tuning jobs, by status.", ("status",), registry=registry)
        self.oldest_queued = Gauge(
            "lorikeet_jobs_oldest_queued_seconds",
            "Age of the oldest fine-tuning job that waits for a worker; 0 if none waits.",
            registry=registry,
        )
        self.silent = Gauge(
            "lorikeet_jobs_silent_seconds",
            "Longest time since the last event of a running fine-tuning job; 0 if none runs.",
            registry=registry,
        )
        self.tokens = Counter(
            "lorikeet_jobs_trained_tokens", "Tokens that fine-tuning jobs have trained on.", registry=registry
        )
        self.phases = Counter(
            "lorikeet_jobs_phase_seconds",
            "Seconds that fine-tuning jobs have spent in a phase, once they have left it: queued or running.",
            ("phase",),
            registry=registry,
        )
        self.batches = BatchMetrics(registry)
        self._figures: Callable[[], JobFigures] | None = None
        self._before: JobFigures | None = None

    def follow(self, figures: Callable[[], JobFigures]) -> None:
        """Export these figures at each scrape."""
        self._figures = figures
        self.jobs.read = self._read

    def _read(self) -> None:
        assert self._figures is not None
        try:
            now = self._figures()
        except JobsError as error:  # the other metrics are scraped all the same
            logger.error("The figures of jobs cannot be read: %s", error)
            return
        self.batches.show(now.batches, self._before.batches if self._before else None)
        for status, number in now.by_status.items():
            self.jobs.labels(status).set(number)
        self.oldest_queued.set(now.oldest_queued_s)
        self.silent.set(now.silent_s)
        before = self._before or now.model_copy(update={"trained_tokens": 0, "phase_s": dict.fromkeys(now.phase_s, 0)})
        self.tokens.inc(max(0, now.trained_tokens - before.trained_tokens))
        for phase, seconds in now.phase_s.items():
            self.phases.labels(phase).inc(max(0.0, seconds - before.phase_s[phase]))
        self._before = now
