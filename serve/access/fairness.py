"""Token counters per tenant: the tenant with the fewest tokens goes next.

This is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). A request is
charged in advance with the most tokens that it may use, and corrected to its actual use when it ends.
"""

from dataclasses import dataclass


@dataclass
class _Count:
    """`used`: tokens of ended requests; `asked`: maximum of running ones; `num_here`: requests that wait or run."""

    used: float = 0.0
    asked: float = 0.0
    num_here: int = 0


class TokenCounters:
    """Tokens of each tenant with a request, and of absent ones that have used more than the lowest of these.

    A returning tenant starts at least at the lowest counter of the present ones, so absence earns no credit. An absent
    tenant at or below that is therefore forgotten, and all are once no tenant has a request.
    """

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def tokens(self, tenant_id: str) -> float:
        """Tokens that a present tenant has used, and the most that its running requests may use."""
        count = self._counts[tenant_id]
        return count.used + count.asked

    def arrive(self, tenant_id: str) -> None:
        """Count a new request of the tenant."""
        count = self._counts.setdefault(tenant_id, _Count())
        if count.num_here == 0:
            # Without `asked`: most of that is given back, and would put the newcomer behind.
            count.used = max(count.used, self._lowest())
        count.num_here += 1

    def leave(self, tenant_id: str) -> None:
        """Forget a request of the tenant."""
        count = self._counts[tenant_id]
        count.num_here -= 1
        if count.num_here == 0:
            lowest = self._lowest()
            is_empty = not any(each.num_here for each in self._counts.values())
            gone = [name for name, each in self._counts.items() if not each.num_here and each.used <= lowest]
            for name in tuple(self._counts) if is_empty else gone:
                del self._counts[name]

    def start(self, tenant_id: str, num_asked: int) -> None:
        """A request starts that may use this many tokens."""
        self._counts[tenant_id].asked += num_asked

    def stop(self, tenant_id: str, num_asked: int, num_used: int) -> None:
        """It has ended and used this many."""
        count = self._counts[tenant_id]
        count.asked -= num_asked
        count.used += num_used

    def _lowest(self) -> float:
        return min((count.used for count in self._counts.values() if count.num_here), default=0.0)
