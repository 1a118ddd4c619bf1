"""Prometheus metrics, labelled by adapter and version of known adapters only."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from adapters.manifest import Manifest, Score
from adapters.reference import Target
from quality.scorers import AnswerFormat
from serve.parity import Parity
from serve.records import GenerationRecord

# One series a counter instead of two; nobody queries `_created`.
disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped upstream

_LABELS = ("adapter", "version")

# Wide enough for a small model on two CPU cores and a large one on a GPU.
_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_TPOT_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
_E2E_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_LOAD_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class ServeMetrics:
    """The server's own metrics; an observer of generations and of adapter loads."""

    def __init__(self, registry: CollectorRegistry, base_name: str) -> None:
        self.registry = registry
        self._base_name = base_name
        self._formats: dict[str, AnswerFormat] = {}
        self.requests = Counter(
            "lorikeet_requests",
            "Requests by HTTP outcome: ok, cancelled, client_error or server_error.",
            (*_LABELS, "endpoint", "outcome"),
            registry=registry,
        )
        self.in_flight = self._gauge("lorikeet_requests_in_flight", "Generations in the engine or its queue.")
        self.ttft = self._histogram("lorikeet_ttft_seconds", "Time to the first token.", _TTFT_BUCKETS)
        self.tpot = self._histogram(
            "lorikeet_time_per_output_token_seconds", "Mean time per token after the first.", _TPOT_BUCKETS
        )
        self.e2e = self._histogram("lorikeet_e2e_latency_seconds", "End-to-end latency.", _E2E_BUCKETS)
        self.queue = self._histogram("lorikeet_queue_seconds", "Time in the engine's queue.", _TTFT_BUCKETS)
        self.prompt_tokens = self._counter("lorikeet_prompt_tokens", "Prompt tokens.")
        self.cached_tokens = self._counter("lorikeet_cached_prompt_tokens", "Prompt tokens from the cache.")
        self.completion_tokens = self._counter("lorikeet_completion_tokens", "Generated tokens.")
        self.loads = self._counter("lorikeet_adapter_loads", "Loads into the engine.")
        self.refusals = self._counter("lorikeet_adapter_refusals", "Versions that failed their checks.")
        self.load_seconds = self._histogram(
            "lorikeet_adapter_load_seconds", "Seconds of a load with its checks.", _LOAD_BUCKETS
        )
        self.parity_error = self._gauge(
            "lorikeet_adapter_parity_error_nats", "Mean |served - trained| log-probability per token at load."
        )
        self.heldout = self._gauge("lorikeet_adapter_heldout_accuracy", "Held-out accuracy at publish, 0 to 1.")
        self.heldout_low = self._gauge("lorikeet_adapter_heldout_accuracy_ci_low", "Lower end of its 95% interval.")
        self.heldout_high = self._gauge("lorikeet_adapter_heldout_accuracy_ci_high", "Upper end of its 95% interval.")
        self.base_heldout = self._gauge(
            "lorikeet_adapter_heldout_base_accuracy", "The base model's accuracy on the same held-out split."
        )
        self.answers_checked = self._counter("lorikeet_answers_checked", "Answers checked for the domain's format.")
        self.answers_valid = self._counter("lorikeet_answers_valid_format", "Checked answers in the valid format.")
        self.unloads = self._counter("lorikeet_adapter_unloads", "Versions freed from the engine.")
        self.shadow = Counter(
            "lorikeet_shadow_requests",
            "Copies sent to a canary in shadow mode: ok, error or dropped.",
            (*_LABELS, "outcome"),
            registry=registry,
        )
        self.probes = Counter(
            "lorikeet_isolation_probes",
            "Replays of a resident version's golden prompts: ok, or wrong.",
            (*_LABELS, "outcome"),
            registry=registry,
        )
        self.probe_error = self._gauge(
            "lorikeet_isolation_probe_error_nats", "Parity error of the last replay, nats per token."
        )
        self.rejections = Counter(
            "lorikeet_rejections", "Requests answered by an error, by its code.", ("reason",), registry=registry
        )
        self.waiting = Gauge(
            "lorikeet_requests_waiting", "Requests that wait for their turn, by why.", ("reason",), registry=registry
        )
        self.engine_restarts = Counter("lorikeet_engine_restarts", "Engines that died.", registry=registry)
        self.ready = Gauge("lorikeet_ready", "1 when requests are taken.", registry=registry)
        self.engine_start_seconds = Gauge(
            "lorikeet_engine_start_seconds", "Seconds from start to ready.", registry=registry
        )

    def request_finished(self, served_name: str | None, endpoint: str, outcome: str) -> None:
        """Count an HTTP request; `served_name` None where the model was unknown."""
        adapter, version = ("", "") if served_name is None else self._split(served_name)
        self.requests.labels(adapter, version, endpoint, outcome).inc()

    def request_rejected(self, reason: str) -> None:
        """Count an error that was answered, by its `code`, or its `type` where it has none."""
        self.rejections.labels(reason).inc()

    def follow_waiting(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Export at each scrape how many requests wait, by reason; `counts` names every reason."""
        for reason in counts():
            self.waiting.labels(reason).set_function(partial(_count_of, counts, reason))

    def generation_started(self, lora_name: str | None) -> None:
        self.in_flight.labels(*self._split(lora_name)).inc()

    def generation_finished(self, record: GenerationRecord) -> None:
        labels = self._split(record.lora_name)
        self.in_flight.labels(*labels).dec()
        self.prompt_tokens.labels(*labels).inc(record.num_prompt_tokens)
        self.cached_tokens.labels(*labels).inc(record.num_cached_tokens)
        self.completion_tokens.labels(*labels).inc(record.num_completion_tokens)
        for histogram, seconds in (
            (self.queue, record.queue_s),
            (self.ttft, record.ttft_s),
            (self.tpot, record.tpot_s),
        ):
            if seconds is not None:
                histogram.labels(*labels).observe(seconds)
        if record.outcome == "ok":
            self.e2e.labels(*labels).observe(record.e2e_s)
            self._check_format(record)

    def adapter_loaded(self, manifest: Manifest, load_s: float, parity: Parity | None) -> None:
        labels = (manifest.name, str(manifest.version))
        if manifest.answer_schema is not None:
            self._formats[manifest.lora_name] = AnswerFormat(manifest.answer_schema)
        self.loads.labels(*labels).inc()
        self.load_seconds.labels(*labels).observe(load_s)
        if parity is not None:
            self.parity_error.labels(*labels).set(parity.adapter_error_nats)
        if manifest.evaluation is not None:
            self._set_heldout(labels, manifest.evaluation.adapter, manifest.evaluation.base)

    def adapter_refused(self, target: Target) -> None:
        self.refusals.labels(target.name, str(target.version)).inc()

    def adapter_unloaded(self, target: Target) -> None:
        self.unloads.labels(target.name, str(target.version)).inc()

    def adapter_retired(self, target: Target) -> None:
        """Drop every series of a version that was removed from the store."""
        self._formats.pop(str(target), None)
        labels = {"adapter": target.name, "version": str(target.version)}
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase) and set(_LABELS) <= set(metric._labelnames):
                metric.remove_by_labels(labels)

    def shadow_finished(self, target: Target, outcome: str) -> None:
        self.shadow.labels(target.name, str(target.version), outcome).inc()

    def probe_finished(self, target: Target, error_nats: float, *, is_ok: bool) -> None:
        self.probes.labels(target.name, str(target.version), "ok" if is_ok else "wrong").inc()
        self.probe_error.labels(target.name, str(target.version)).set(error_nats)

    def _set_heldout(self, labels: tuple[str, str], adapter: Score, base: Score) -> None:
        self.heldout.labels(*labels).set(adapter.value)
        self.heldout_low.labels(*labels).set(adapter.ci_low)
        self.heldout_high.labels(*labels).set(adapter.ci_high)
        self.base_heldout.labels(*labels).set(base.value)

    def _check_format(self, record: GenerationRecord) -> None:
        answer_format = self._formats.get(record.lora_name or "")
        if answer_format is None:
            return
        labels = self._split(record.lora_name)
        self.answers_checked.labels(*labels).inc(len(record.texts))
        self.answers_valid.labels(*labels).inc(sum(map(answer_format.accepts, record.texts)))

    def _split(self, name: str | None) -> tuple[str, str]:
        """The labels of a `lora_name`; the base model has no version."""
        adapter, _, version = (name or self._base_name).partition("@")
        return adapter, version

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _LABELS, buckets=buckets, registry=self.registry)


def _count_of(counts: Callable[[], Mapping[str, int]], reason: str) -> float:
    return counts()[reason]
