"""One value per user of a canary's trial: the mean of the user's first requests, which never changes once it counts.

A canary is drawn by user, so a user, not a request, is the unit of evidence: eight users are eight draws, however many
requests they send (Deng, Knoblich and Lu, "Applying the delta method in metric analytics", KDD 2018; Donner and Klar,
"Design and analysis of cluster randomization trials in health research", 2000). Requests counted one by one overstate
the evidence by the design effect 1 + (requests per user - 1) x intraclass correlation.

A sequential bound multiplies factors, one per unit, and each factor must be linear in an unbiased value: a product over
the requests of one user, or a mean that goes on changing while one looks, would let the difference between users pass
for one between versions. So a user counts once, after `MAX_REQUESTS` requests or `MAX_WAIT_S` after the first one.

And only for the version that answered first, also where a raised weight moves the user to the canary. Else stable's
users would be the light ones after that: its heavy ones counted before, and those of the canary count anew.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

MAX_REQUESTS = 20
"""Of one user; more would only make the user's own mean more exact."""
MAX_WAIT_S = 600.0
"""A user who sends fewer counts after this time with what there is."""
MAX_USERS = 100_000
"""Of one trial; memory stays bounded, and so many users decide or never will."""


class UserMean(NamedTuple):
    """Observations of one user."""

    user: str
    is_canary: bool
    value: float
    """0 to 1."""
    num_requests: int


@dataclass
class _Open:
    is_canary: bool
    first_s: float
    total: float = 0.0
    num: int = 0


class UserMeans:
    """The users of stable and canary, in the order in which they are counted.

    Args:
        counted: Users that count already, e.g. before a restart; their requests are ignored.
    """

    def __init__(self, counted: Iterable[str] = ()) -> None:
        self._counted = set(counted)
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def add(
        self, user: str, is_canary: bool, at_s: float, value: float, max_requests: int = MAX_REQUESTS
    ) -> UserMean | None:
        """Add one request; returns the user's mean if it is now counted.

        Args:
            max_requests: 1 if this user sends no further request.
        """
        is_full = len(self._counted) + len(self._open) >= MAX_USERS
        if user in self._counted or (is_full and user not in self._open):
            return None
        seen = self._open.setdefault(user, _Open(is_canary, at_s))
        if seen.is_canary != is_canary:
            return None
        seen.total += value
        seen.num += 1
        return self._close(user) if seen.num >= max_requests else None

    def close_due(self, now_s: float) -> list[UserMean]:
        """The users whose waiting time has passed, oldest first."""
        due = []
        while self._open and (first := next(iter(self._open.items())))[1].first_s + MAX_WAIT_S <= now_s:
            due.append(self._close(first[0]))
        return due

    def _close(self, user: str) -> UserMean:
        seen = self._open.pop(user)
        self._counted.add(user)
        return UserMean(user, seen.is_canary, seen.total / seen.num, seen.num)
