"""Metrics of the quality monitor: answers, held-out questions, drift, trials."""

from prometheus_client import Counter, Gauge

from adapters.reference import Target
from adapters.scores import Score
from quality.drift import DriftReport
from quality.signals import Signals
from quality.verdict import Verdict
from serve.observe.series import Family, VersionFamilies, labels_of

_LOGPROB_BUCKETS = (-5.0, -3.0, -2.0, -1.5, -1.0, -0.75, -0.5, -0.35, -0.25, -0.15, -0.1, -0.05, -0.02, -0.01, 0.0)


class QualityMetrics:
    """Quality metrics of the adapter versions."""

    def __init__(self, families: VersionFamilies) -> None:
        counter, gauge, registry = families.counter, families.gauge, families.registry
        self.paused = Gauge(
            "lorikeet_quality_paused", "1 while an operator has paused the quality monitor, else 0.", registry=registry
        )
        self.answers = counter("lorikeet_answers", "Complete client answers whose signals were measured.")
        self.mean_logprob = families.histogram(
            "lorikeet_answer_mean_logprob",
            "Mean log-probability per answer token, nats, of the model's own distribution.",
            _LOGPROB_BUCKETS,
        )
        self.refused = counter(
            "lorikeet_answers_refused", "Answers that begin like a refusal, or equal the agreed one."
        )
        self.repetitive = counter("lorikeet_answers_repetitive", "Answers that consist mostly of repetition.")
        self.samples = counter("lorikeet_quality_samples", "Answers stored as samples.")
        self.feedback = counter("lorikeet_feedback", "Feedback of users that was stored.", "kind")
        self.dropped = Family(
            Counter(
                "lorikeet_quality_dropped",
                "Answers not measured: queue full, or failed.",
                ("reason",),
                registry=registry,
            )
        )
        self.drift = gauge(
            "lorikeet_drift", "1 if the latest drift check found drift in the feature, else 0.", "feature"
        )
        self.drift_checks = counter("lorikeet_drift_checks", "Drift checks of windows of traffic.")
        self.held_out_accuracy = gauge(
            "lorikeet_held_out_live_accuracy", "Mean score of held-out questions by their metric, 0 to 1."
        )
        self.held_out_low = gauge("lorikeet_held_out_live_accuracy_ci_low", "Lower bound of its 95% Wilson interval.")
        self.held_out_high = gauge("lorikeet_held_out_live_accuracy_ci_high", "Upper bound of its 95% Wilson interval.")
        self.held_out_questions = gauge(
            "lorikeet_held_out_questions_scored", "Held-out questions behind the mean score."
        )
        self.general_nll = gauge(
            "lorikeet_general_text_nll", "Mean negative log-likelihood of general text, nats per token."
        )
        self.trial_pairs = gauge("lorikeet_trial_pairs", "Pairs of canary and stable observations.", "comparison")
        self.trial_users = gauge(
            "lorikeet_trial_users", "Users counted for each version on trial.", "comparison", "side"
        )
        self.trial_difference = gauge("lorikeet_trial_difference", "Canary's mean minus stable's.", "comparison")
        self.trial_low = gauge(
            "lorikeet_trial_difference_ci_low", "Lower bound of its anytime-valid interval.", "comparison"
        )
        self.trial_high = gauge(
            "lorikeet_trial_difference_ci_high", "Upper bound of its anytime-valid interval.", "comparison"
        )
        self.verdicts = counter("lorikeet_verdicts", "Verdicts on the canary: promote, rollback or hold.", "action")

    def monitor_paused(self, *, is_paused: bool) -> None:
        self.paused.set(is_paused)

    def answers_dropped(self, reason: str, num: int = 1) -> None:
        self.dropped.of(reason).inc(num)

    def samples_kept(self, adapter: str, version: str, num: int) -> None:
        self.samples.of(adapter, version).inc(num)

    def feedback_taken(self, adapter: str, version: str, kind: str) -> None:
        self.feedback.of(adapter, version, kind).inc()

    def answer_seen(self, adapter: str, version: str, signals: Signals) -> None:
        self.answers.of(adapter, version).inc()
        self.refused.of(adapter, version).inc(signals.is_refusal)
        self.repetitive.of(adapter, version).inc(signals.is_repetitive)
        if signals.mean_logprob is not None:
            self.mean_logprob.of(adapter, version).observe(signals.mean_logprob)

    def held_out_scored(self, target: Target, share: Score) -> None:
        labels = labels_of(target)
        self.held_out_accuracy.of(*labels).set(share.value)
        self.held_out_low.of(*labels).set(share.ci_low)
        self.held_out_high.of(*labels).set(share.ci_high)
        self.held_out_questions.of(*labels).set(share.n)

    def drift_checked(self, target: Target, report: DriftReport) -> None:
        self.drift_checks.of(*labels_of(target)).inc()
        for feature in report.features:
            self.drift.of(*labels_of(target), feature.name).set(feature.is_drift)

    def general_measured(self, target: Target, nll: float) -> None:
        self.general_nll.of(*labels_of(target)).set(nll)

    def trial_judged(self, canary: Target, verdict: Verdict) -> None:
        """Export the comparisons behind a verdict."""
        for comparison in verdict.comparisons:
            labels = (*labels_of(canary), comparison.name)
            self.trial_pairs.of(*labels).set(comparison.num_pairs)
            self.trial_difference.of(*labels).set(comparison.canary - comparison.stable)
            self.trial_low.of(*labels).set(comparison.ci_low)
            self.trial_high.of(*labels).set(comparison.ci_high)
            if comparison.users is not None:
                self.trial_users.of(*labels, "stable").set(comparison.users.stable)
                self.trial_users.of(*labels, "canary").set(comparison.users.canary)

    def trial_over(self, canary: Target) -> None:
        """The figures of a trial are told while it lasts; the history keeps those of its end."""
        for family in (
            self.trial_pairs,
            self.trial_users,
            self.trial_difference,
            self.trial_low,
            self.trial_high,
        ):
            family.retire(labels_of(canary))

    def verdict_told(self, canary: Target, action: str) -> None:
        self.verdicts.of(*labels_of(canary), action).inc()
