"""Eviction policy: unload the least requested idle version, with ageing request counts.

Least frequently used with ageing (as TinyLFU ages, Einziger et al. 2017): every `window` requests all counts are
halved. An adapter is worth its count times what it costs to load again; of equals the least recently used goes. With
1,000 adapters asked for as people do (Zipf), and room for 16, 44% of the requests find theirs resident; by last use
alone 28% do, and to know all rates beforehand would give 45% (tests/serve/residency/test_eviction.py).
"""

from collections import Counter
from collections.abc import Iterable

from adapters.reference import Target

_WINDOW = 512
# What a load costs whatever its size, in bytes that could be loaded meanwhile.
_FIXED_BYTES = 4 << 20


class Popularity:
    """Counts requests, and says who of the idle ones goes."""

    def __init__(self, window: int = _WINDOW) -> None:
        self._window = window
        self._counts: Counter[Target] = Counter()  # at most two windows' worth of versions, resident or not
        self._seen = 0

    def asked(self, target: Target) -> None:
        """Count a request."""
        self._counts[target] += 2  # even, so that one halving loses nothing
        self._seen += 1
        if self._seen == self._window:
            self._seen = 0
            self._counts = Counter({target: count // 2 for target, count in self._counts.items() if count > 1})

    def counts(self) -> dict[str, int]:
        """By version; older requests count less."""
        return {str(target): count for target, count in self._counts.items()}

    def least_wanted(self, idle: Iterable[tuple[Target, int]]) -> Target:
        """Of versions with their sizes in bytes, least recently used first."""
        target, _ = min(idle, key=lambda one: self._counts[one[0]] * (_FIXED_BYTES + one[1]))
        return target
