"""Token counters per tenant: the tenant with the fewest tokens goes next.

This is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), charged in
advance with what a request may use at most, and corrected when it is known what it has used.
"""

from dataclasses import dataclass


@dataclass
class _Count:
    """`used` is known; `asked` is what the running requests may use at most; `num_here` waits or runs."""

    used: float = 0.0
    asked: float = 0.0
    num_here: int = 0


class TokenCounters:
    """Tokens of each tenant that has a request here, and of those that were here and have had more than the others.

    Whoever was away starts no lower than the lowest tenant that is here: time spent away earns nothing. So a tenant
    that is away and is no higher need not be remembered, and once nobody is here, all start anew.
    """

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def tokens(self, tenant_id: str) -> float:
        """What a tenant that is here has used, and what its running requests may use at most."""
        count = self._counts[tenant_id]
        return count.used + count.asked

    def arrive(self, tenant_id: str) -> None:
        """A request of the tenant is here from now on."""
        count = self._counts.setdefault(tenant_id, _Count())
        if count.num_here == 0:
            # Not with what is asked: most of that is given back, and would put the newcomer behind.
            count.used = max(count.used, self._lowest())
        count.num_here += 1

    def leave(self, tenant_id: str) -> None:
        """It is gone."""
        count = self._counts[tenant_id]
        count.num_here -= 1
        if count.num_here == 0:
            lowest = self._lowest()
            is_empty = not any(each.num_here for each in self._counts.values())
            gone = [name for name, each in self._counts.items() if not each.num_here and each.used <= lowest]
            for name in tuple(self._counts) if is_empty else gone:
                del self._counts[name]

    def start(self, tenant_id: str, num_asked: int) -> None:
        """A request runs, which may use so many tokens."""
        self._counts[tenant_id].asked += num_asked

    def stop(self, tenant_id: str, num_asked: int, num_used: int) -> None:
        """It has ended, and has used so many."""
        count = self._counts[tenant_id]
        count.asked -= num_asked
        count.used += num_used

    def _lowest(self) -> float:
        return min((count.used for count in self._counts.values() if count.num_here), default=0.0)
