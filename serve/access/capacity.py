"""Engine capacity used by requests, and the reserve for tenants without running requests."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple


def reserved(num_places: int) -> int:
    """How many of several places are reserved for tenants without running requests, if there are several tenants."""
    return min(num_places - 1, max(1, num_places // 8))


class EngineShare(NamedTuple):
    """A part of the engine: sequences of a batch, and tokens of the KV cache."""

    num_sequences: int
    num_tokens: float

    def plus(self, other: "EngineShare") -> "EngineShare":
        return EngineShare(self.num_sequences + other.num_sequences, self.num_tokens + other.num_tokens)

    def minus(self, other: "EngineShare") -> "EngineShare":
        return EngineShare(self.num_sequences - other.num_sequences, self.num_tokens - other.num_tokens)

    def holds(self, used: "EngineShare", more: "EngineShare") -> bool:
        """Whether more fits beside what is used. A request for more tokens than exist counts as one for all of them."""
        num_tokens = used.num_tokens + min(more.num_tokens, self.num_tokens)
        return used.num_sequences + more.num_sequences <= self.num_sequences and num_tokens <= self.num_tokens


_NOTHING = EngineShare(0, 0.0)


def sum_of(shares: Iterable[EngineShare]) -> EngineShare:
    return reduce(EngineShare.plus, shares, _NOTHING)


@dataclass(frozen=True)
class Ask:
    """The engine capacity that a request needs.

    Args:
        tenant_id: The unit of fair sharing. The batches of a tenant are a unit of their own.
        adapter: vLLM's `lora_name`, `medical@3`: versions take slots of their own. None is the base model.
        priority: Lower first.
        num_sequences: Number of prompts times answers per prompt.
        num_tokens: Tokens of its prompts, and of its answers at their maximum length.
        is_batch: No client waits for it: it runs in what clients leave free.
    """

    tenant_id: str
    adapter: str | None = None
    priority: int = 0
    num_sequences: int = 1
    num_tokens: int = 1
    is_batch: bool = False

    @property
    def line(self) -> tuple[str, int, str | None]:
        """Key of the request's queue; a queue is first in, first out."""
        return self.tenant_id, self.priority, self.adapter

    @property
    def share(self) -> EngineShare:
        return EngineShare(self.num_sequences, self.num_tokens)


@dataclass(eq=False)
class Ticket:
    """One request in the queue: waiting, running or finished."""

    ask: Ask
    arrived_s: float
    sequence: int
    state: Literal["waiting", "running", "gone"] = "waiting"
    num_passed: int = 0
    """Sequences admitted ahead of this one while it was overdue for a slot, or did not fit."""
    load_s: float | None = None
    """Time that it has waited for its adapter's load, seconds; None if the adapter was already loaded."""


class Capacity:
    """The engine's capacity. With several tenants, a part is reserved for those without running requests.

    Args:
        max_sequences: Maximum running sequences.
        num_tenants: Number of tenants, including those without a request.
        kv_tokens: Size of the KV cache in tokens; None if unknown. It only counts with several tenants: vLLM itself
            handles a cache that one tenant overcommits.
    """

    def __init__(self, max_sequences: int, num_tenants: Callable[[], int], kv_tokens: Callable[[], int | None]) -> None:
        assert max_sequences >= 1
        self.max_sequences = max_sequences
        self._num_tenants = num_tenants
        self._kv_tokens = kv_tokens
        self._outside: set[Ticket] = set()
        self._inside: set[Ticket] = set()
        self._used_outside = self._used_inside = _NOTHING

    @property
    def running(self) -> set[Ticket]:
        return self._outside | self._inside

    @property
    def num_sequences(self) -> int:
        """Running sequences."""
        return self._used_outside.num_sequences + self._used_inside.num_sequences

    @property
    def used(self) -> EngineShare:
        """What runs."""
        return self._used_outside.plus(self._used_inside)

    @property
    def has_reserve(self) -> bool:
        return self._num_tenants() > 1

    def without_reserve(self, num_places: int) -> int:
        """How many of several places a tenant with running requests may take."""
        return num_places - reserved(num_places) if self.has_reserve else num_places

    def fits(self, ask: Ask) -> bool:
        """Whether a request fits outside the reserve."""
        if self.num_sequences + ask.num_sequences > self.max_sequences:
            return False
        # A request that is too large was allowed when it arrived, before a second tenant got its first key.
        return self._limit_outside().holds(self._used_outside, ask.share) or not self.num_sequences

    def fits_reserve(self, ask: Ask) -> bool:
        """Whether a request of a tenant without running requests fits in the reserve."""
        if self.num_sequences + ask.num_sequences > self.max_sequences:
            return False
        return self.has_reserve and self._limit_inside().holds(self._used_inside, ask.share)

    def take(self, ticket: Ticket, *, is_in_reserve: bool) -> None:
        if is_in_reserve:
            self._inside.add(ticket)
            self._used_inside = self._used_inside.plus(ticket.ask.share)
        else:
            self._outside.add(ticket)
            self._used_outside = self._used_outside.plus(ticket.ask.share)

    def give_back(self, ticket: Ticket) -> None:
        if ticket in self._inside:
            self._inside.remove(ticket)
            self._used_inside = self._used_inside.minus(ticket.ask.share)
        else:
            self._outside.remove(ticket)
            self._used_outside = self._used_outside.minus(ticket.ask.share)

    def refill_reserve(self) -> int:
        """Move running requests out of the reserve where they fit outside it. Returns the number of moved sequences."""
        num_before = self._used_inside.num_sequences
        for ticket in sorted(self._inside, key=lambda ticket: ticket.sequence):
            if self._limit_outside().holds(self._used_outside, ticket.ask.share):
                self.give_back(ticket)
                self.take(ticket, is_in_reserve=False)
        return num_before - self._used_inside.num_sequences

    def _limit_outside(self) -> EngineShare:
        num_sequences = self.without_reserve(self.max_sequences)
        return EngineShare(num_sequences, self._num_tokens() * num_sequences / self.max_sequences)

    def _limit_inside(self) -> EngineShare:
        num_sequences = reserved(self.max_sequences)
        share = num_sequences / self.max_sequences
        return EngineShare(num_sequences, self._num_tokens() * share if share else 0.0)

    def _num_tokens(self) -> float:
        num_tokens = self._kv_tokens() if self.has_reserve else None
        return float("inf") if num_tokens is None else num_tokens
