"""Verdict on a canary (promote, roll back or hold): a pure function of observations of stable and canary.

Three comparisons, each the mean difference between canary and stable against a limit: held-out scores (may be lower by
the margin at most), error rate and share of slow requests (may be higher by so much at most). The canary goes as soon
as one of them is proven beyond its limit, and is promoted once all three are proven within.

One may decide after every observation: a canary whose true difference lies beyond a limit is ever promoted with
probability at most alpha, and one within all limits is ever rolled back with probability at most alpha. The first needs
no correction, for all three must pass (intersection-union test, Berger 1982); for the second each has alpha / 3.

A held-out question is asked of both versions, so each question is a pair of its own. Clients' requests are not: all
requests of a user go to one version. Errors and slow requests are therefore compared user by user: a user of the canary
with one of stable, each with one value (`quality.users`) and all with the same weight. Few users prove nothing, however
much they send, and the canary is then held.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from math import isfinite, log
from typing import Literal, NamedTuple

import numpy as np

from quality.betting import log_wealth, mean_bounds
from quality.policy import CanaryPolicy

Action = Literal["promote", "hold", "rollback"]
State = Literal["within", "beyond", "open"]

FEW_USERS_ADVICE = (
    "With few users, have clients send each person's id as `user`, run the canary as a shadow, or rely on held-out "
    "questions and promote it yourself"
)

_NUM_COMPARISONS = 3
_MAX_LEAST_PAIRS = 100_000
# The first state that a comparison has decides.
_DECISIONS: dict[State, Action] = {"beyond": "rollback", "open": "hold", "within": "promote"}
_WORDS: dict[State, str] = {
    "beyond": "is more than",
    "open": "may or may not be more than",
    "within": "is less than",
}


class Observation(NamedTuple):
    """One observation of a version."""

    at_s: float
    """When it was known, seconds on a clock that both versions share."""
    value: float
    """0 to 1."""
    user: str | None = None
    """The sticky key of a client's request. Only the first observation of a user counts, and all without a user are
    one user's: give a mean of the user's requests that no longer changes."""
    num_requests: int = 1
    """How many requests the value is the mean of."""


@dataclass(frozen=True)
class Evidence:
    """Observations of one version since the canary began.

    Raises:
        ValueError: A time is not finite, or a value is not 0 to 1 (a NaN never is).
    """

    scores: tuple[Observation, ...] = ()
    """Held-out questions: 1 right, 0 wrong or unscorable, or a judge's grade between. Each is drawn at random for both
    versions. The same greedy answer to the same question says nothing new: counting it again would invent evidence."""
    errors: tuple[Observation, ...] = ()
    """Users: share of their requests in which the version failed; none for what the client did (cancelled, refused)."""
    slow: tuple[Observation, ...] = ()
    """Users: share of their requests with a first token whose TTFT is above stable's 95th percentile from before the
    canary. That threshold stays fixed while the canary runs."""

    def __post_init__(self) -> None:
        for field in fields(self):
            for at_s, value, _, num_requests in getattr(self, field.name):
                if not (isfinite(at_s) and 0.0 <= value <= 1.0 and num_requests >= 1):
                    raise ValueError(
                        f"{field.name} must hold finite times and values from 0 to 1; got {value!r} at {at_s!r} s."
                    )


@dataclass(frozen=True)
class Users:
    """Number of users in a comparison."""

    stable: int
    canary: int
    least: int | None
    """Pairs of users that prove a canary without any difference to be within its limit; None: no number does."""

    def __str__(self) -> str:
        takes = f"takes {self.least} of each" if self.least else "is not possible with a limit of 0"
        return f"{self.canary} of the canary and {self.stable} of stable, to prove no harm {takes}"


@dataclass(frozen=True)
class Comparison:
    """Canary against stable, over their pairs. The means are 0 where there are no pairs."""

    name: str
    num_pairs: int
    stable: float
    canary: float
    ci_low: float
    """Of the difference canary - stable. The end for the worse has alpha, the end for the better has alpha / 3:
    the canary is within the limit, or beyond it, once the whole interval is."""
    ci_high: float
    most_worse: float
    """By how much the canary must not be worse, 0 to 1."""
    state: State
    users: Users | None = None
    """Of a comparison by user; None where questions are compared."""

    @property
    def has_too_few_users(self) -> bool:
        """Whether it is open, and would be open even for a canary equal to stable."""
        few = self.users is not None and (self.users.least is None or self.num_pairs < self.users.least)
        return few and self.state == "open"

    def __str__(self) -> str:
        what = "observations" if self.users is None else "users"
        few = f"; too few users: {self.users}" if self.has_too_few_users else ""
        if not self.num_pairs:
            return f"{self.name} has no pair of {what} yet{few.replace(';', ',', 1)}"
        pairs = "pairs" if self.users is None else "pairs of users"
        return (
            f"{self.name} {self.canary:.3f} {_WORDS[self.state]} {self.most_worse:g} worse than stable's "
            f"{self.stable:.3f} (difference {self.canary - self.stable:+.3f} "
            f"[{self.ci_low:+.3f}, {self.ci_high:+.3f}] after {self.num_pairs} {pairs}{few})"
        )


@dataclass(frozen=True)
class Verdict:
    action: Action
    reason: str
    """One sentence with the figures of the comparisons that decided, or that are still open."""
    comparisons: tuple[Comparison, ...]
    """Score, error rate, slow share."""


def decide(stable: Evidence, canary: Evidence, policy: CanaryPolicy) -> Verdict:
    """Decide to promote, roll back or hold; valid after every observation."""
    comparisons = (
        _compare("score", -1, policy.margin, stable.scores, canary.scores, policy),
        _compare_users("error rate", policy.max_error_increase, stable.errors, canary.errors, policy),
        _compare_users("slow share", policy.max_slow_increase, stable.slow, canary.slow, policy),
    )
    states = {comparison.state for comparison in comparisons}
    decisive = next(state for state in _DECISIONS if state in states)
    reason = "; ".join(str(comparison) for comparison in comparisons if comparison.state == decisive)
    if decisive == "open" and any(comparison.has_too_few_users for comparison in comparisons):
        reason = f"{reason}. {FEW_USERS_ADVICE}"
    return Verdict(_DECISIONS[decisive], f"canary {reason}", comparisons)


def pair_in_time(stable: Iterable[Observation], canary: Iterable[Observation]) -> list[tuple[float, float]]:
    """Values (stable, canary) of each observation and the latest unused one of the other version before it.

    What hits both alike, as load or a dying engine, then cancels out, and a pair once formed stays: later observations
    only add pairs. Questions put to both versions at once are compared answer by answer. Equal times: stable first.
    """
    return [(one.value, other.value) for one, other in _matched(stable, canary)]


@lru_cache
def least_pairs(most_worse: float, alpha: float) -> int | None:
    """Pairs that prove a canary which never differs from stable to be within its limit; None where no number does."""
    if most_worse <= 0.0:
        return None
    counts = np.arange(1, _MAX_LEAST_PAIRS + 1)[:, None]
    is_proven = log_wealth(np.array([0.5]), counts, (1.0 - most_worse) / 2.0) > log(1.0 / alpha)
    return int(is_proven.argmax()) + 1 if is_proven.any() else None


def _matched(stable: Iterable[Observation], canary: Iterable[Observation]) -> list[tuple[Observation, Observation]]:
    """Pair both versions by the same rule, so that the order of observations causes no difference."""
    sides = [(seen, 0) for seen in stable] + [(seen, 1) for seen in canary]
    unused: tuple[list[Observation], list[Observation]] = ([], [])
    pairs = []
    for seen, side in sorted(sides, key=lambda one: (one[0].at_s, one[1])):
        if not unused[1 - side]:
            unused[side].append(seen)
        else:
            other = unused[1 - side].pop()
            pairs.append((other, seen) if side else (seen, other))
    return pairs


def _one_per_user(observations: Iterable[Observation]) -> list[Observation]:
    """The first observation of each user; later ones are not independent."""
    first: dict[str | None, Observation] = {}
    for seen in sorted(observations, key=lambda seen: seen.at_s):
        first.setdefault(seen.user, seen)
    return list(first.values())


def _compare_users(
    name: str, most_worse: float, stable: Iterable[Observation], canary: Iterable[Observation], policy: CanaryPolicy
) -> Comparison:
    one, other = _one_per_user(stable), _one_per_user(canary)
    users = Users(len(one), len(other), least_pairs(most_worse, policy.alpha))
    return _compare(name, 1, most_worse, one, other, policy, users)


def _compare(
    name: str,
    worse: Literal[-1, 1],
    most_worse: float,
    stable: Iterable[Observation],
    canary: Iterable[Observation],
    policy: CanaryPolicy,
    users: Users | None = None,
) -> Comparison:
    """`worse` is the sign of a difference canary - stable that harms."""
    matched = _matched(stable, canary)
    pairs = np.array([(one.value, other.value) for one, other in matched], dtype=np.float64).reshape(-1, 2)
    harm = worse * (pairs[:, 1] - pairs[:, 0])
    # A bound needs values from 0 to 1; a harm lies between -1 and 1.
    low, high = mean_bounds((1.0 + harm) / 2.0, policy.alpha / _NUM_COMPARISONS, policy.alpha)
    harm_low, harm_high = 2.0 * low - 1.0, 2.0 * high - 1.0
    ci_low, ci_high = sorted((worse * harm_low, worse * harm_high))
    stable_mean, canary_mean = pairs.mean(axis=0).tolist() if len(pairs) else (0.0, 0.0)
    state: State = "open"
    if sum(min(one.num_requests, other.num_requests) for one, other in matched) >= policy.min_pairs:
        state = "beyond" if harm_low > most_worse else "within" if harm_high < most_worse else "open"
    return Comparison(name, len(pairs), stable_mean, canary_mean, ci_low, ci_high, most_worse, state, users)
