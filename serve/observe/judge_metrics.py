"""Metrics of the judge: scores of versions, and agreement with human labels."""

from prometheus_client import Counter, Gauge

from quality.agreement import Agreement
from serve.observe.series import Family, VersionFamilies

_NOT_A_NUMBER = float("nan")


class JudgeMetrics:
    """`calibrated` is "true" once people have labelled enough of what the judge has graded, else "false"."""

    def __init__(self, families: VersionFamilies) -> None:
        registry = families.registry
        self._score = families.gauge("lorikeet_judge_score", "Mean score given by the judge, 0 to 1.", "calibrated")
        self._preference = families.gauge(
            "lorikeet_judge_preference", "Share of comparisons with stable in which the judge preferred the canary."
        )
        self._kappa = Family(
            Gauge(
                "lorikeet_judge_kappa", "Cohen's kappa between judge and human labels.", ("adapter",), registry=registry
            )
        )
        self._kappa_low = Family(
            Gauge("lorikeet_judge_kappa_ci_low", "Lower bound of its 95% interval.", ("adapter",), registry=registry)
        )
        self._kappa_high = Family(
            Gauge("lorikeet_judge_kappa_ci_high", "Upper bound of its 95% interval.", ("adapter",), registry=registry)
        )
        self._requests = Family(
            Counter("lorikeet_judge_requests", "Requests to the judge, by outcome.", ("outcome",), registry=registry)
        )

    def asked(self, outcome: str) -> None:
        self._requests.of(outcome).inc()

    def judged(self, adapter: str, version: int, mean_score: float, *, is_calibrated: bool) -> None:
        """Export a version's mean; the base is version 0."""
        shown, other = ("true", "false") if is_calibrated else ("false", "true")
        labels = adapter, str(version or "")
        self._score.drop(*labels, other)
        self._score.of(*labels, shown).set(mean_score)

    def preferred(self, adapter: str, version: int, mean_preference: float) -> None:
        """Export how a canary did against stable: 1 better in all comparisons, 0 worse in all."""
        self._preference.of(adapter, str(version)).set(mean_preference)

    def agrees(self, adapter: str, agreement: Agreement) -> None:
        """Export the judge's agreement with human labels; NaN where kappa is undefined."""
        for family, value in (
            (self._kappa, agreement.kappa),
            (self._kappa_low, agreement.ci_low),
            (self._kappa_high, agreement.ci_high),
        ):
            family.of(adapter).set(_NOT_A_NUMBER if value is None else value)
