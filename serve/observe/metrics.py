"""Prometheus metrics of the server; docs/metrics.md has the table, and a test compares it with this file."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.registry import Collector

from adapters.reference import Target
from adapters.store.evaluation_records import FigureRecord
from adapters.store.manifest import Manifest
from config.serve import ServeConfig
from serve.background import Failures
from serve.errors import NotFiniteError, ParityError, ServeError
from serve.observe.answers import KnownAnswers
from serve.observe.engine_metrics import EngineMetrics
from serve.observe.eval_metrics import EvalMetrics
from serve.observe.genai_metrics import GenAiMetrics
from serve.observe.job_metrics import JobMetrics
from serve.observe.judge_metrics import JudgeMetrics
from serve.observe.quality_metrics import QualityMetrics
from serve.observe.router_metrics import AdapterPlaces, RouterMetrics, WithAdmissionQueue
from serve.observe.series import VersionFamilies, labels_of
from serve.observe.tenant_metrics import TenantMetrics
from serve.records import AnsweredRequest, EvaluationListeners, GenerationRecord, Source

# One series a counter instead of two; nobody queries `_created`.
disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped upstream

# Wide enough for a small model on two CPU cores and a large one on a GPU.
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_TPOT_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
_E2E_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_LOAD_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

_NO_VERSION = ("", "")


class TrafficMetrics:
    """Request metrics: counts, outcomes, and waiting times before the engine."""

    def __init__(self, families: VersionFamilies) -> None:
        registry = families.registry
        self.requests = families.counter(
            "lorikeet_requests",
            "Requests by HTTP outcome: ok, cancelled, client_error or server_error.",
            "endpoint",
            "outcome",
        )
        self.rejections = families.counter(
            "lorikeet_rejections", "Requests that ended with an error, by reason.", "reason"
        )
        self.connections_refused = Counter(
            "lorikeet_connections_refused",
            "Connections that got a 503 because `max_connections` were open.",
            registry=registry,
        )
        self.in_flight = families.gauge("lorikeet_requests_in_flight", "Generations that the engine runs or queues.")
        self.in_flight_limit = Gauge(
            "lorikeet_requests_in_flight_limit",
            "Maximum concurrent sequences in the engine (max_num_seqs).",
            registry=registry,
        )
        self.waiting = Gauge(
            "lorikeet_requests_waiting", "Requests in the admission queue, by reason.", ("reason",), registry=registry
        )
        self.waiting_limit = Gauge(
            "lorikeet_requests_waiting_limit",
            "Maximum requests in the admission queue (max_waiting).",
            registry=registry,
        )
        self.body = Histogram(
            "lorikeet_body_seconds",
            "Time from a request's headers to its whole body, read and validated.",
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        self.admission_wait = families.histogram(
            "lorikeet_admission_wait_seconds",
            "Time in the admission queue, before the engine receives the request.",
            TTFT_BUCKETS,
        )


class GenerationMetrics:
    """Generation metrics: phases, tokens, and properties of the answers."""

    def __init__(self, families: VersionFamilies) -> None:
        counter, histogram = families.counter, families.histogram
        self.ttft = histogram(
            "lorikeet_ttft_seconds", "Time from the request's arrival (body read) to its first token.", TTFT_BUCKETS
        )
        self.e2e = histogram(
            "lorikeet_e2e_latency_seconds",
            "Time from the request's arrival (body read) to its last token.",
            _E2E_BUCKETS,
        )
        self.queue = histogram("lorikeet_queue_seconds", "Time in the engine's queue.", TTFT_BUCKETS)
        self.prefill = histogram(
            "lorikeet_prefill_seconds", "Time from leaving the engine's queue to the first token.", TTFT_BUCKETS
        )
        self.decode = histogram("lorikeet_decode_seconds", "Time from the first to the last token.", _E2E_BUCKETS)
        self.itl = histogram(
            "lorikeet_inter_token_latency_seconds", "Gaps between the chunks of streamed answers.", _TPOT_BUCKETS
        )
        self.tpot = histogram(
            "lorikeet_time_per_output_token_seconds", "Mean time per token after the first.", _TPOT_BUCKETS
        )
        self.prompt_tokens = counter("lorikeet_prompt_tokens", "Prompt tokens.")
        self.cached_tokens = counter("lorikeet_cached_prompt_tokens", "Prompt tokens read from the prefix cache.")
        self.completion_tokens = counter("lorikeet_completion_tokens", "Generated tokens.")
        self.choices = counter(
            "lorikeet_choices",
            "Finished choices by the engine's finish reason: stop, length, abort or error.",
            "finish_reason",
        )
        self.not_finite = counter(
            "lorikeet_not_finite_generations", "Generations aborted because their logits were NaN or infinite."
        )
        self.answers_checked = counter("lorikeet_answers_checked", "Answers validated against the domain's format.")
        self.answers_valid = counter("lorikeet_answers_valid_format", "Validated answers in the expected format.")
        self.shadow = counter(
            "lorikeet_shadow_requests", "Shadow copies sent to a canary: ok, error or dropped.", "outcome"
        )


class AdapterMetrics:
    """Adapter version metrics: residency, loads, and parity with training."""

    def __init__(self, families: VersionFamilies) -> None:
        counter, gauge = families.counter, families.gauge
        self.resident = gauge("lorikeet_adapter_resident", "1 while the version is resident in the engine, else 0.")
        self.resident_limit = Gauge(
            "lorikeet_adapters_resident_limit",
            "Maximum resident versions (max_cpu_loras).",
            registry=families.registry,
        )
        self.loads = counter("lorikeet_adapter_loads", "Loads into the engine.")
        self.load_seconds = families.histogram(
            "lorikeet_adapter_load_seconds", "Duration of a load, including its checks.", _LOAD_BUCKETS
        )
        self.cold_start = families.histogram(
            "lorikeet_cold_start_seconds", "Time that requests waited for their version to load.", _LOAD_BUCKETS
        )
        self.unloads = counter("lorikeet_adapter_unloads", "Versions unloaded from the engine, for any reason.")
        self.evictions = counter("lorikeet_adapter_evictions", "Versions unloaded to make room for others.")
        self.refusals = counter(
            "lorikeet_adapter_refusals", "Versions that failed a check: files, engine, finite or parity.", "check"
        )
        self.load_failures = counter(
            "lorikeet_adapter_load_failures", "Loads that failed for a transient reason and will be retried."
        )
        self.parity_error = gauge(
            "lorikeet_adapter_parity_error_nats", "Mean |served - trained| log-probability per token at load."
        )
        self.golden_replays = counter(
            "lorikeet_golden_replays", "Replays of a resident version's golden prompts: ok or wrong.", "outcome"
        )
        self.golden_replay_error = gauge(
            "lorikeet_golden_replay_error_nats", "Parity error of the latest replay, nats per token."
        )
        self.quarantined = gauge("lorikeet_adapter_quarantined", "1 while the version is quarantined, else 0.")
        self.heldout = gauge(
            "lorikeet_adapter_held_out_accuracy", "Mean score of held-out questions at publication, 0 to 1."
        )
        self.heldout_low = gauge("lorikeet_adapter_held_out_accuracy_ci_low", "Lower bound of its 95% interval.")
        self.heldout_high = gauge("lorikeet_adapter_held_out_accuracy_ci_high", "Upper bound of its 95% interval.")
        self.base_heldout = gauge(
            "lorikeet_adapter_held_out_base_accuracy", "The base model's mean score on the same held-out split."
        )

    def set_heldout(self, labels: tuple[str, str], figure: FigureRecord) -> None:
        self.heldout.of(*labels).set(figure.adapter.value)
        self.heldout_low.of(*labels).set(figure.adapter.ci_low)
        self.heldout_high.of(*labels).set(figure.adapter.ci_high)
        if figure.base is not None:
            self.base_heldout.of(*labels).set(figure.base.value)


class ServeMetrics:
    """The server's own metrics; an observer of requests, generations and adapter loads."""

    def __init__(self, registry: CollectorRegistry, base_name: str) -> None:
        self.registry = registry
        self._base_name = base_name
        self.of_vllm: Collector | WithAdmissionQueue = REGISTRY
        self.answers = KnownAnswers()
        self._families = VersionFamilies(registry)
        self.traffic = TrafficMetrics(self._families)
        self.generations = GenerationMetrics(self._families)
        self.adapters = AdapterMetrics(self._families)
        self.quality = QualityMetrics(self._families)
        self.judge = JudgeMetrics(self._families)
        self.evaluations = EvalMetrics(self._families)
        self.tenants = TenantMetrics(registry)
        self.genai = GenAiMetrics(registry)
        self.jobs = JobMetrics(registry)
        self.engine = EngineMetrics(registry)
        self.failures = Failures(lambda task, num: self.engine.background_failures.labels(task).inc(num))
        self.evaluated = EvaluationListeners(self.failures)

    def set_limits(self, config: ServeConfig) -> None:
        """Export the configured limits, so that queries can compute utilisation."""
        self.traffic.in_flight_limit.set(config.max_num_seqs)
        self.traffic.waiting_limit.set(config.max_waiting)
        self.adapters.resident_limit.set(config.max_cpu_loras)

    def follow_waiting(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Export at each scrape how many requests wait, by reason; `counts` names every reason."""
        for reason in counts():
            self.traffic.waiting.labels(reason).set_function(partial(_count_of, counts, reason))

    def follow_adapters(self, max_loras: int, places: AdapterPlaces) -> None:
        """Export at each scrape which adapters are here and who waits, as routers read it."""
        self.registry.register(RouterMetrics(self._base_name, max_loras, places))
        self.of_vllm = WithAdmissionQueue(REGISTRY, lambda: sum(places.waiting().values()))

    def engine_started(self, start_s: float) -> None:
        self.engine.start_seconds.set(start_s)
        self.engine.ready.set(1)

    def engine_stopped(self) -> None:
        self.engine.ready.set(0)
        for resident in self.adapters.resident.all():
            resident.set(0)

    def engine_died(self) -> None:
        self.engine.restarts.inc()
        self.engine_stopped()

    def key_refused(self, error: ServeError) -> None:
        """Count a request whose key was refused, before its body was read."""
        self.traffic.rejections.of(*_NO_VERSION, error.reason).inc()

    def request_finished(self, record: AnsweredRequest) -> None:
        labels = _NO_VERSION if record.served_name is None else self._labels(record.served_name)
        self.traffic.requests.of(*labels, record.endpoint, record.outcome).inc()
        if record.reason is not None:
            self.traffic.rejections.of(*labels, record.reason).inc()
        waits_s = record.context.phases_s
        if "body" in waits_s:
            self.traffic.body.observe(waits_s["body"])
        if "admission" in waits_s:
            self.traffic.admission_wait.of(*labels).observe(waits_s["admission"])
        if record.context.is_cold:
            self.adapters.cold_start.of(*labels).observe(waits_s["residency"])
        self.tenants.request_finished(record)
        self.genai.request_finished(record)

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        if source == "monitor":  # the monitor's own questions do not count as traffic
            return
        self.traffic.in_flight.of(*self._labels(lora_name)).inc()

    def generation_finished(self, record: GenerationRecord) -> None:
        labels, group = self._labels(record.lora_name), self.generations
        if not record.is_finite:
            group.not_finite.of(*labels).inc()
        if record.source == "monitor":
            return
        self.traffic.in_flight.of(*labels).dec()
        group.prompt_tokens.of(*labels).inc(record.num_prompt_tokens)
        group.cached_tokens.of(*labels).inc(record.num_cached_tokens)
        group.completion_tokens.of(*labels).inc(record.num_completion_tokens)
        self.tenants.generation_finished(record)
        for reason in record.finish_reasons:
            group.choices.of(*labels, reason).inc()
        if record.source != "batch":  # it gives way to clients, and nobody waits for it
            self._observe_latencies(labels, record)
        if record.outcome == "ok":
            self._check_format(labels, record)

    def adapter_loaded(self, manifest: Manifest, load_s: float, parity_error_nats: float | None) -> None:
        labels, group = (manifest.name, str(manifest.version)), self.adapters
        self.answers.learn(manifest)
        group.resident.of(*labels).set(1)
        group.loads.of(*labels).inc()
        group.load_seconds.of(*labels).observe(load_s)
        group.golden_replays.of(*labels, "wrong")  # it is there at 0, so that `increase` sees the first one
        if parity_error_nats is not None:
            group.parity_error.of(*labels).set(parity_error_nats)
        if manifest.held_out_figure is not None:
            group.set_heldout(labels, manifest.held_out_figure)
        self.evaluations.show(Target(manifest.name, manifest.version), manifest.figures)

    def adapter_refused(self, target: Target, error: BaseException) -> None:
        checks = {ParityError: "parity", NotFiniteError: "finite", ServeError: "engine"}
        check = next((check for kind, check in checks.items() if isinstance(error, kind)), "files")
        self.adapters.refusals.of(*labels_of(target), check).inc()

    def adapter_not_loaded(self, target: Target) -> None:
        self.adapters.load_failures.of(*labels_of(target)).inc()

    def adapter_evicted(self, target: Target) -> None:
        self.adapters.evictions.of(*labels_of(target)).inc()

    def adapter_unloaded(self, target: Target) -> None:
        self.adapters.unloads.of(*labels_of(target)).inc()
        self.adapters.resident.of(*labels_of(target)).set(0)
        self.evaluations.hide(target)

    def adapter_retired(self, target: Target) -> None:
        """Drop every series of a version that was removed from the store."""
        self.answers.forget(target)
        self.evaluations.hide(target)
        self._families.retire(target)
        self.genai.retire(target)

    def adapter_quarantined(self, target: Target, *, is_out: bool) -> None:
        self.adapters.quarantined.of(*labels_of(target)).set(is_out)

    def shadow_finished(self, target: Target, outcome: str) -> None:
        self.generations.shadow.of(*labels_of(target), outcome).inc()

    def golden_replay_finished(self, target: Target, error_nats: float, *, is_ok: bool) -> None:
        """Args: error_nats: NaN where the version gave no finite log-probability."""
        self.adapters.golden_replays.of(*labels_of(target), "ok" if is_ok else "wrong").inc()
        self.adapters.golden_replay_error.of(*labels_of(target)).set(error_nats)

    def _observe_latencies(self, labels: tuple[str, str], record: GenerationRecord) -> None:
        group = self.generations
        for family, seconds in (
            (group.queue, record.queue_s),
            (group.prefill, record.prefill_s),
            (group.decode, record.decode_s),
            (group.ttft, record.ttft_s),
            (group.tpot, record.tpot_s),
        ):
            if seconds is not None:
                family.of(*labels).observe(seconds)
        if record.outcome == "ok":
            group.e2e.of(*labels).observe(record.e2e_s)
        if record.itl_s:
            observe = group.itl.of(*labels).observe
            for gap_s in record.itl_s:
                observe(gap_s)

    def _check_format(self, labels: tuple[str, str], record: GenerationRecord) -> None:
        if valid := self.answers.valid_format(record):
            self.generations.answers_checked.of(*labels).inc(len(valid))
            self.generations.answers_valid.of(*labels).inc(sum(valid))

    def _labels(self, name: str | None) -> tuple[str, str]:
        """The labels of a `lora_name`; the base model has no version."""
        adapter, _, version = (name or self._base_name).partition("@")
        return adapter, version


def _count_of(counts: Callable[[], Mapping[str, int]], reason: str) -> float:
    return counts()[reason]
