"""Whether a canary becomes stable, goes, or waits: a pure function of what stable and canary did side by side.

Three comparisons, each the mean difference between canary and stable against a limit: probe scores (may be lower by
the margin at most), error rate and share of slow requests (may be higher by so much at most). The canary goes as soon
as one of them is proven beyond its limit, and is promoted once all three are proven within.

One may decide after every observation: a canary whose true difference lies beyond a limit is ever promoted with
probability at most alpha, and one within all limits is ever rolled back with probability at most alpha. The first needs
no correction, for all three must pass (intersection-union test, Berger 1982); for the second each has alpha / 3.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import isfinite
from typing import Literal, NamedTuple

import numpy as np

from quality.betting import mean_bounds

Action = Literal["promote", "hold", "rollback"]
State = Literal["within", "beyond", "open"]

_NUM_COMPARISONS = 3
# The first state that a comparison has decides.
_DECISIONS: dict[State, Action] = {"beyond": "rollback", "open": "hold", "within": "promote"}
_WORDS: dict[State, str] = {
    "beyond": "is more than",
    "open": "may or may not be more than",
    "within": "is less than",
}


class Observation(NamedTuple):
    """Something seen of one version."""

    at_s: float
    """When it was known, seconds on a clock that both versions share."""
    value: float
    """0 to 1."""


@dataclass(frozen=True)
class Evidence:
    """What was seen of one version since the canary began.

    Raises:
        ValueError: A time is not finite, or a value is not 0 to 1 (a NaN never is).
    """

    scores: tuple[Observation, ...] = ()
    """Probes: 1 right, 0 wrong or unscorable, or a judge's grade between. Each is drawn at random for both versions.
    The same greedy answer to the same probe says nothing new: counting it again would invent evidence."""
    errors: tuple[Observation, ...] = ()
    """Requests: 1 where the version failed, else 0; none for what the client did (cancelled, refused)."""
    slow: tuple[Observation, ...] = ()
    """Requests that got a first token: 1 where its TTFT is above stable's 95th percentile from before the canary, else
    0. That threshold stays fixed while the canary runs."""

    def __post_init__(self) -> None:
        for field in fields(self):
            for at_s, value in getattr(self, field.name):
                if not (isfinite(at_s) and 0.0 <= value <= 1.0):
                    raise ValueError(
                        f"{field.name} must hold finite times and values from 0 to 1; got {value!r} at {at_s!r} s."
                    )


@dataclass(frozen=True)
class Policy:
    """What a canary must prove, and how surely.

    Raises:
        ValueError: A limit is not 0 to 1, alpha not between, or `min_pairs` below 1.
    """

    margin: float = 0.05
    """Non-inferiority margin: the mean probe score may be lower than stable's by less than this."""
    max_error_increase: float = 0.02
    """The error rate may be higher than stable's by less than this."""
    max_slow_increase: float = 0.05
    """The share of slow requests may be higher than stable's by less than this: 0.05 beside stable's own 0.05 means at
    most twice as often."""
    alpha: float = 0.05
    """Most probability of ever promoting a canary beyond a limit, and most of ever rolling back one within all."""
    min_pairs: int = 20
    """A comparison of fewer pairs stays open, so that a cold start decides nothing."""

    def __post_init__(self) -> None:
        for name in ("margin", "max_error_increase", "max_slow_increase"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1; got {getattr(self, name)!r}.")
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha must lie between 0 and 1; got {self.alpha!r}.")
        if self.min_pairs < 1:
            raise ValueError(f"min_pairs must be at least 1; got {self.min_pairs!r}.")


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

    def __str__(self) -> str:
        if not self.num_pairs:
            return f"{self.name} has no pair of observations yet"
        return (
            f"{self.name} {self.canary:.3f} {_WORDS[self.state]} {self.most_worse:g} worse than stable's "
            f"{self.stable:.3f} (difference {self.canary - self.stable:+.3f} "
            f"[{self.ci_low:+.3f}, {self.ci_high:+.3f}] after {self.num_pairs} pairs)"
        )


@dataclass(frozen=True)
class Verdict:
    action: Action
    reason: str
    """One sentence with the figures of the comparisons that decided, or that are still open."""
    comparisons: tuple[Comparison, ...]
    """Score, error rate, slow share."""


def decide(stable: Evidence, canary: Evidence, policy: Policy) -> Verdict:
    """Promote the canary, roll it back, or hold; may be asked after every observation."""
    comparisons = (
        _compare("score", -1, policy.margin, stable.scores, canary.scores, policy),
        _compare("error rate", 1, policy.max_error_increase, stable.errors, canary.errors, policy),
        _compare("slow share", 1, policy.max_slow_increase, stable.slow, canary.slow, policy),
    )
    states = {comparison.state for comparison in comparisons}
    decisive = next(state for state in _DECISIONS if state in states)
    reason = "; ".join(str(comparison) for comparison in comparisons if comparison.state == decisive)
    return Verdict(_DECISIONS[decisive], f"canary {reason}", comparisons)


def pair_in_time(stable: Iterable[Observation], canary: Iterable[Observation]) -> list[tuple[float, float]]:
    """Values (stable, canary) of each canary observation and the latest unused stable one before it.

    What hits both alike, as load or a dying engine, then cancels out, and a pair once formed stays: later observations
    only add pairs. Probes that run on both versions at once are compared answer by answer. Equal times: stable first.
    """
    events = sorted(
        [(seen.at_s, False, seen.value) for seen in stable] + [(seen.at_s, True, seen.value) for seen in canary],
        key=lambda event: event[:2],
    )
    unused: list[float] = []
    pairs = []
    for _, is_canary, value in events:
        if not is_canary:
            unused.append(value)
        elif unused:
            pairs.append((unused.pop(), value))
    return pairs


def _compare(
    name: str,
    worse: Literal[-1, 1],
    most_worse: float,
    stable: Iterable[Observation],
    canary: Iterable[Observation],
    policy: Policy,
) -> Comparison:
    """`worse` is the sign of a difference canary - stable that harms."""
    pairs = np.array(pair_in_time(stable, canary), dtype=np.float64).reshape(-1, 2)
    harm = worse * (pairs[:, 1] - pairs[:, 0])
    # A bound needs values from 0 to 1; a harm lies between -1 and 1.
    low, high = mean_bounds((1.0 + harm) / 2.0, policy.alpha / _NUM_COMPARISONS, policy.alpha)
    harm_low, harm_high = 2.0 * low - 1.0, 2.0 * high - 1.0
    ci_low, ci_high = sorted((worse * harm_low, worse * harm_high))
    stable_mean, canary_mean = pairs.mean(axis=0).tolist() if len(pairs) else (0.0, 0.0)
    state: State = "open"
    if len(pairs) >= policy.min_pairs:
        state = "beyond" if harm_low > most_worse else "within" if harm_high < most_worse else "open"
    return Comparison(name, len(pairs), stable_mean, canary_mean, ci_low, ci_high, most_worse, state)
