"""Limit the influence of one user: a maximum share of the rows that rest on that user's votes alone."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import count

from train.data.cleaning.identity import row_key
from train.data.examples import Example
from train.data.feedback.votes import Vote
from train.data.steps import Finding, Step, StepResult, finding

USER_SHARES = "share of one user"

Owners = Mapping[Hashable, str]
"""By row, the only user whose votes support it."""

_ROUNDING = 1e-9


def lone_owners(votes: Iterable[Vote]) -> Owners:
    """Rows for which one user alone votes: no second user, label or judge."""
    voters: dict[Hashable, dict[str, bool]] = defaultdict(dict)
    for vote in votes:
        voters[row_key(vote.example)][vote.who] = vote.is_user
    return {row: next(iter(who)) for row, who in voters.items() if len(who) == 1 and all(who.values())}


def cap_users(examples: Sequence[Example], owners: Owners, max_user_share: float) -> StepResult:
    """Drop rows of users who alone would make up more than a share of the data set; the first ones stay.

    Args:
        examples: In order of preference.
    """
    own = [owners.get(row_key(example)) for example in examples]
    counts = Counter(who for who in own if who is not None)
    allowed = rows_allowed(list(counts.values()), len(examples) - counts.total(), max_user_share)
    places: dict[str | None, count[int]] = defaultdict(count)
    kept: list[Example] = []
    findings: list[Finding] = []
    for example, who in zip(examples, own, strict=True):
        if who is not None and next(places[who]) >= allowed:
            reason = f"user {who} alone gave {counts[who]} rows; {allowed} are kept ({max_user_share:.0%} of the rows)"
            findings.append(finding(example, reason))
        else:
            kept.append(example)
    return StepResult(tuple(kept), Step(USER_SHARES, len(examples), len(kept), findings=tuple(findings)))


def rows_allowed(counts: Sequence[int], num_others: int, max_share: float) -> int:
    """Rows that each user may have, so that none has more than the share of all rows that remain; at least one.

    Args:
        counts: Rows of each user.
        num_others: Rows of nobody alone.
    """
    low, high = 1, max(counts, default=1)
    while low < high:
        middle = (low + high + 1) // 2
        total = num_others + sum(min(count, middle) for count in counts)
        low, high = (middle, high) if middle <= max_share * total + _ROUNDING else (low, middle - 1)
    return low
