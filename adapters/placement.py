"""Which of several servers a request goes to: where its adapter is, on more of them when one is too few.

Used by the router of `lorikeet serve --cluster ray` and by `lorikeet simulate`, so that what is simulated is what runs.
Power of two choices: Mitzenmacher, "The power of two choices in randomized load balancing" (2001).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

ReplicaT = TypeVar("ReplicaT")

NUM_SAMPLED = 4
"""Servers without the adapter that are looked at for a new place."""

MIN_HOT_REQUESTS = 4
"""Requests in flight for one adapter from which on more servers than one may be worth a load."""


@dataclass(frozen=True)
class ReplicaLoad:
    """What a router knows of one server.

    Attributes:
        num_requests: Sent there and not answered yet.
        max_requests: How many run at a time; later ones wait.
        num_adapters: In its memory, or being loaded.
        max_adapters: Places for adapters.
    """

    num_requests: int
    max_requests: int
    num_adapters: int
    max_adapters: int

    @property
    def is_full(self) -> bool:
        return self.num_requests >= self.max_requests

    @property
    def has_place(self) -> bool:
        return self.num_adapters < self.max_adapters


def copies_wanted(num_own: int, num_all: int, num_replicas: int) -> int:
    """On how many servers an adapter should be, by its share of the requests in flight on all servers.

    Args:
        num_own: Requests in flight for this adapter.
        num_all: Requests in flight for any.
    """
    if num_own < MIN_HOT_REQUESTS:
        return 1
    return min(num_replicas, ceil(num_replicas * num_own / num_all))


def choose_replica(
    holders: Sequence[ReplicaT],
    others: Sequence[ReplicaT],
    load: Callable[[ReplicaT], ReplicaLoad],
    rng: random.Random,
    num_copies: Callable[[], int] = lambda: 1,
) -> ReplicaT:
    """The server for one request.

    The less busy of two servers that hold the adapter. Another server gets the adapter, too, if it has at most a
    quarter of the requests of that one; half of them are enough where that one is full, or fewer servers hold the
    adapter than its load is worth. So a hot adapter spreads, and eviction takes its copies back when it cools. An
    adapter that no server holds goes where most places are free.

    Args:
        holders: Servers with the adapter in memory, or loading it.
        others: The rest; a few are sampled.
        num_copies: Returns `copies_wanted`; called only where it matters.

    Raises:
        ValueError: Both lists are empty.
    """
    if not holders and not others:
        raise ValueError("At least one server is required.")
    if not holders:
        return _place_for(others, load, rng)
    best = less_busy_of_two(holders, load, rng)
    busy = load(best)
    if not others or busy.num_requests < min(MIN_HOT_REQUESTS, busy.max_requests):
        return best
    new = _place_for(others, load, rng)
    is_hot = busy.is_full or num_copies() > len(holders)
    return new if load(new).num_requests <= busy.num_requests / (2 if is_hot else 4) else best


def less_busy_of_two(
    replicas: Sequence[ReplicaT], load: Callable[[ReplicaT], ReplicaLoad], rng: random.Random
) -> ReplicaT:
    """The less busy of two servers drawn at random, whatever they hold."""
    drawn = replicas if len(replicas) <= 2 else rng.sample(replicas, 2)
    return min(drawn, key=lambda replica: load(replica).num_requests)


def share_of_new(demand: Mapping[str, float], num_servers: int, num_places: int) -> tuple[str, ...]:
    """Adapters that a server should hold when it joins others, the most wanted first.

    The adapters are dealt, the most wanted first, to the server with the least demand so far; one that is worth several
    servers is dealt to as many. The new server gets the hand of the last.

    Args:
        demand: Requests by adapter, on all servers, of late.
        num_servers: With the new one.
        num_places: At most so many adapters.
    """
    total = sum(demand.values())
    dealt: list[float] = [0.0] * num_servers
    share: list[str] = []
    for adapter, wanted in sorted(demand.items(), key=lambda item: (-item[1], item[0])):
        if len(share) == num_places or wanted <= 0:
            break
        num_copies = min(num_servers, ceil(num_servers * wanted / total))
        # Of servers with as little the last: the new one has nothing yet.
        for server in sorted(range(num_servers), key=lambda own: (dealt[own], -own))[:num_copies]:
            dealt[server] += wanted / num_copies
            if server == num_servers - 1:
                share.append(adapter)
    return tuple(share)


def _place_for(replicas: Sequence[ReplicaT], load: Callable[[ReplicaT], ReplicaLoad], rng: random.Random) -> ReplicaT:
    """Of a few: one with a free place, then the one with the fewest adapters and requests."""
    drawn = replicas if len(replicas) <= NUM_SAMPLED else rng.sample(replicas, NUM_SAMPLED)

    def rank(replica: ReplicaT) -> tuple[bool, bool, int, int]:
        own = load(replica)
        return own.is_full, not own.has_place, own.num_adapters, own.num_requests

    return min(drawn, key=rank)
