"""Formatting of the quality report's figures, for the terminal and HTML."""

from datetime import UTC, datetime

from adapters.scores import Score
from serve.monitor.report.figures import AdapterFigures, DriftStep, JudgeFigures
from serve.monitor.trial.state import ComparisonState

NONE = "–"


def percent(share: Score | None) -> str:
    """`57.1% (50–64)`."""
    if share is None:
        return NONE
    return f"{100 * share.value:.1f}% ({100 * share.ci_low:.0f}–{100 * share.ci_high:.0f})"


def score(share: Score) -> str:
    """`0.71 (0.60–0.80) of 50`."""
    return f"{share.value:.2f} ({share.ci_low:.2f}–{share.ci_high:.2f}) of {share.n}"


def kappa(judge: JudgeFigures) -> str:
    """`0.62 (0.41–0.77)`, or why there is none."""
    agreement = judge.agreement
    if agreement.n == 0:
        return "unknown: no graded sample has a label"
    if agreement.kappa is None or agreement.ci_low is None or agreement.ci_high is None:
        return "undefined: all labels and grades are the same"
    kind = ", quadratic weights" if agreement.weights == "quadratic" else ", right or wrong"
    return f"{agreement.kappa:.2f} ({agreement.ci_low:.2f}–{agreement.ci_high:.2f}){kind}"


def agreed(value: float, judge: JudgeFigures) -> str:
    """A share of agreement; none where nothing was compared."""
    return f"{100 * value:.0f}%" if judge.agreement.n else NONE


def at(at_s: float) -> str:
    """`2026-11-22 12:00`, UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M")


def users(comparison: ComparisonState) -> str:
    """`3 and 5 of 242`: of the canary, of stable, and of each to prove no harm; none where questions are compared."""
    if comparison.canary_users is None:
        return NONE
    least = "no number" if comparison.least_users is None else comparison.least_users
    return f"{comparison.canary_users} and {comparison.stable_users} of {least}"


def difference(comparison: ComparisonState) -> str:
    """`-0.210 (-0.400 to -0.020)`: the canary's mean minus stable's."""
    if not comparison.num_pairs:
        return NONE
    value = comparison.canary - comparison.stable
    return f"{value:+.3f} ({comparison.ci_low:+.3f} to {comparison.ci_high:+.3f})"


def last_drift_steps(adapter: AdapterFigures, most: int) -> list[tuple[int, DriftStep]]:
    """The latest drift checks with their versions, newest first."""
    drift_steps = [(version.version, step) for version in adapter.versions for step in version.drift_steps]
    return sorted(drift_steps, key=lambda pair: pair[1].at_s, reverse=True)[:most]
