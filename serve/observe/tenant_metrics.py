"""Metrics of each tenant: requests, tokens, refusals, and what runs."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric

from serve.observe.series import Family
from serve.records import AnsweredRequest, GenerationRecord

# So many tenants have series of their own; those that come later share one, for keys are made faster than dashboards.
_MAX_TENANTS = 100
_OTHER_TENANTS = "other"


class _PolledGauge(Gauge):
    """A gauge that reads its values at each scrape, keyed by its only label."""

    counts: Callable[[], Mapping[str, int]] = staticmethod(dict)

    def collect(self) -> Iterable[Metric]:
        for label, count in self.counts().items():
            self.labels(label).set(count)
        return super().collect()


class TenantMetrics:
    """Metrics per tenant. The first `most` tenants have series of their own."""

    def __init__(self, registry: CollectorRegistry, most: int = _MAX_TENANTS) -> None:
        self._most = most
        self._names: set[str] = set()
        self.running = _PolledGauge(
            "lorikeet_tenant_sequences_running",
            "Sequences that run in the engine.",
            ("tenant",),
            registry=registry,
        )
        self.requests = self._counter(registry, "lorikeet_tenant_requests", "Requests by HTTP outcome.", "outcome")
        self.tokens = self._counter(registry, "lorikeet_tenant_tokens", "Tokens of prompts and completions.", "kind")
        self.throttled = self._counter(
            registry, "lorikeet_tenant_throttled", "Requests refused with a 429, by the limit exceeded.", "reason"
        )

    def request_finished(self, record: AnsweredRequest) -> None:
        name = self._name(record.context.tenant)
        self.requests.of(name, record.outcome).inc()
        if record.status == 429 and record.reason is not None:
            self.throttled.of(name, record.reason).inc()

    def generation_finished(self, record: GenerationRecord) -> None:
        if record.tenant is not None:
            name = self._name(record.tenant)
            self.tokens.of(name, "prompt").inc(record.num_prompt_tokens)
            self.tokens.of(name, "completion").inc(record.num_completion_tokens)

    def follow_running(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Export at each scrape how many sequences each tenant has in the engine."""
        self.running.counts = lambda: self._by_name(counts())

    def _by_name(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        named = dict.fromkeys(tuple(self._names), 0)
        for tenant, count in counts.items():
            name = self._name(tenant)
            named[name] = named.get(name, 0) + count
        return named

    def _name(self, tenant: str) -> str:
        if tenant not in self._names:
            if len(self._names) >= self._most:
                return _OTHER_TENANTS
            self._names.add(tenant)
        return tenant

    @staticmethod
    def _counter(registry: CollectorRegistry, name: str, text: str, label: str) -> Family[Counter]:
        return Family(Counter(name, text, ("tenant", label), registry=registry))
