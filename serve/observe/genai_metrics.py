"""The server's times and tokens by OpenTelemetry's names for generative AI, for dashboards that know these.

Source: open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md, with its buckets; names and units as
OpenTelemetry's Prometheus exporter writes them.
"""

from prometheus_client import CollectorRegistry, Histogram

from adapters.reference import Target
from serve.observe.series import Family
from serve.records import AnsweredRequest

OPERATIONS = {"chat/completions": "chat", "completions": "text_completion", "responses": "chat"}
"""`gen_ai.operation.name` by endpoint."""

_PROVIDER = "lorikeet"
_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_REQUEST_BUCKETS = tuple(0.01 * 2**power for power in range(14))
_TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))
_TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TPOT_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class GenAiMetrics:
    """An observer of requests. The model is the version that answered, because client input must not become a label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._retired: set[str] = set()

        def histogram(name: str, text: str, buckets: tuple[float, ...], *more: str) -> Family[Histogram]:
            return Family(Histogram(name, text, (*_LABELS, *more), buckets=buckets, registry=registry))

        self._duration = histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from a request's arrival (body read) to its last token.",
            _REQUEST_BUCKETS,
            "error_type",
        )
        self._ttft = histogram(
            "gen_ai_server_time_to_first_token_seconds", "Time to the first token of answered requests.", _TTFT_BUCKETS
        )
        self._tpot = histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time per token after the first, of answered requests.",
            _TPOT_BUCKETS,
        )
        self._tokens = histogram(
            "gen_ai_client_token_usage", "Tokens of a request, by type.", _TOKEN_BUCKETS, "gen_ai_token_type"
        )

    def request_finished(self, record: AnsweredRequest) -> None:
        generation, operation = record.generation, OPERATIONS.get(record.endpoint)
        if operation is None or record.served_name is None or record.outcome == "cancelled":
            return
        if record.served_name in self._retired:  # it ended after its version was removed
            return
        labels = (operation, _PROVIDER, record.served_name)
        if record.outcome != "ok" or generation is None:
            self._duration.of(*labels, record.reason or "_OTHER").observe(record.duration_s)
            return
        self._tokens.of(*labels, "input").observe(generation.num_prompt_tokens)
        self._tokens.of(*labels, "output").observe(generation.num_completion_tokens)
        if generation.source == "batch":  # it gives way to clients, and nobody waits for it
            return
        self._duration.of(*labels, "").observe(generation.e2e_s)
        if generation.ttft_s is not None:
            self._ttft.of(*labels).observe(generation.ttft_s)
        if generation.tpot_s is not None:
            self._tpot.of(*labels).observe(generation.tpot_s)

    def retire(self, target: Target) -> None:
        """Drop every series of a version; versions are never reused."""
        self._retired.add(str(target))
        for family in (self._duration, self._ttft, self._tpot, self._tokens):
            family.drop_where(2, str(target))
