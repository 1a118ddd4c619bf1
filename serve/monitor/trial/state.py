"""State of a canary's trial, as in `/admin/quality` and the quality report."""

from pydantic import BaseModel, ConfigDict

from adapters.reference import Target
from adapters.release.trials import Trial
from quality.verdict import Action, Comparison, State, Verdict


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class ComparisonState(_Figures):
    """One comparison. The users are None of the score: questions are asked of both versions."""

    name: str
    state: State
    num_pairs: int
    stable: float
    canary: float
    ci_low: float
    ci_high: float
    most_worse: float
    stable_users: int | None
    canary_users: int | None
    least_users: int | None
    """Of each version, to prove that a canary does no harm; None also where no number does."""


class TrialState(_Figures):
    """A trial under way and what its evidence says now."""

    stable: str
    canary: str
    began_at: str
    """UTC, ISO 8601."""
    action: Action
    reason: str
    comparisons: tuple[ComparisonState, ...]


def trial_state(name: str, trial: Trial, verdict: Verdict) -> TrialState:
    return TrialState(
        stable=str(Target(name, trial.stable)),
        canary=str(Target(name, trial.canary)),
        began_at=trial.began_at,
        action=verdict.action,
        reason=verdict.reason,
        comparisons=tuple(map(_comparison, verdict.comparisons)),
    )


def _comparison(comparison: Comparison) -> ComparisonState:
    users = comparison.users
    return ComparisonState(
        name=comparison.name,
        state=comparison.state,
        num_pairs=comparison.num_pairs,
        stable=round(comparison.stable, 6),
        canary=round(comparison.canary, 6),
        ci_low=round(comparison.ci_low, 6),
        ci_high=round(comparison.ci_high, 6),
        most_worse=comparison.most_worse,
        stable_users=users.stable if users else None,
        canary_users=users.canary if users else None,
        least_users=users.least if users else None,
    )
