"""Engine capacity used by requests, and the reserve for tenants without running requests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple


def reserved(num_places: int) -> int:
    """The part of several places that is kept for tenants that hold none, where there are several tenants."""
    return min(num_places - 1, max(1, num_places // 8))


class Room(NamedTuple):
    """Sequences of a batch, and tokens of the KV cache."""

    num_sequences: int
    num_tokens: float

    def plus(self, other: "Room") -> "Room":
        return Room(self.num_sequences + other.num_sequences, self.num_tokens + other.num_tokens)

    def minus(self, other: "Room") -> "Room":
        return Room(self.num_sequences - other.num_sequences, self.num_tokens - other.num_tokens)

    def holds(self, used: "Room", more: "Room") -> bool:
        """Whether there is room for more. A request for more tokens than there are counts as one for all of them."""
        num_tokens = used.num_tokens + min(more.num_tokens, self.num_tokens)
        return used.num_sequences + more.num_sequences <= self.num_sequences and num_tokens <= self.num_tokens


_NOTHING = Room(0, 0.0)


@dataclass(frozen=True)
class Ask:
    """What a request wants of the engine.

    Args:
        tenant_id: Who shares fairly with others.
        adapter: vLLM's `lora_name`, `medical@3`: versions take slots of their own. None is the base model.
        priority: Lower first.
        num_sequences: Prompts times answers to each.
        num_tokens: Of its prompts, and of all its answers at their longest.
    """

    tenant_id: str
    adapter: str | None = None
    priority: int = 0
    num_sequences: int = 1
    num_tokens: int = 1

    @property
    def line(self) -> tuple[str, int, str | None]:
        """Requests of one line run in the order in which they came."""
        return self.tenant_id, self.priority, self.adapter

    @property
    def room(self) -> Room:
        return Room(self.num_sequences, self.num_tokens)


@dataclass(eq=False)
class Ticket:
    """One request in the queue: waiting, running or finished."""

    ask: Ask
    arrived_s: float
    sequence: int
    state: Literal["waiting", "running", "gone"] = "waiting"
    num_passed: int = 0
    """Sequences that were let in past this one while it had waited too long for a slot, or did not fit."""
    load_s: float | None = None
    """For how long it has waited for its adapter's load, seconds; None where the adapter was loaded before."""


class Capacity:
    """The engine's room. Where there are several tenants, a part of it is a reserve for those that hold nothing.

    Args:
        max_sequences: Sequences that run at a time.
        num_tenants: How many there may be, with those that have no request here.
        kv_tokens: Tokens that the KV cache holds; None where nobody knows. It is only looked at where there are several
            tenants: what one does to itself, vLLM copes with.
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
        """Those that run."""
        return self._used_outside.num_sequences + self._used_inside.num_sequences

    @property
    def has_reserve(self) -> bool:
        return self._num_tenants() > 1

    def without_reserve(self, num_places: int) -> int:
        """What a tenant that holds some already may take of several places."""
        return num_places - reserved(num_places) if self.has_reserve else num_places

    def fits(self, ask: Ask) -> bool:
        """Whether there is room outside the reserve."""
        if self.num_sequences + ask.num_sequences > self.max_sequences:
            return False
        # A request that is too large was right when it came, before a second tenant got its first key.
        return self._limit_outside().holds(self._used_outside, ask.room) or not self.num_sequences

    def fits_reserve(self, ask: Ask) -> bool:
        """Whether there is room in the reserve, for a tenant that holds nothing."""
        if self.num_sequences + ask.num_sequences > self.max_sequences:
            return False
        return self.has_reserve and self._limit_inside().holds(self._used_inside, ask.room)

    def take(self, ticket: Ticket, *, is_in_reserve: bool) -> None:
        if is_in_reserve:
            self._inside.add(ticket)
            self._used_inside = self._used_inside.plus(ticket.ask.room)
        else:
            self._outside.add(ticket)
            self._used_outside = self._used_outside.plus(ticket.ask.room)

    def give_back(self, ticket: Ticket) -> None:
        if ticket in self._inside:
            self._inside.remove(ticket)
            self._used_inside = self._used_inside.minus(ticket.ask.room)
        else:
            self._outside.remove(ticket)
            self._used_outside = self._used_outside.minus(ticket.ask.room)

    def refill_reserve(self) -> int:
        """Count who runs in the reserve as outside, where there is room. Returns how many sequences that were."""
        num_before = self._used_inside.num_sequences
        for ticket in sorted(self._inside, key=lambda ticket: ticket.sequence):
            if self._limit_outside().holds(self._used_outside, ticket.ask.room):
                self.give_back(ticket)
                self.take(ticket, is_in_reserve=False)
        return num_before - self._used_inside.num_sequences

    def _limit_outside(self) -> Room:
        num_sequences = self.without_reserve(self.max_sequences)
        return Room(num_sequences, self._num_tokens() * num_sequences / self.max_sequences)

    def _limit_inside(self) -> Room:
        num_sequences = reserved(self.max_sequences)
        share = num_sequences / self.max_sequences
        return Room(num_sequences, self._num_tokens() * share if share else 0.0)

    def _num_tokens(self) -> float:
        num_tokens = self._kv_tokens() if self.has_reserve else None
        return float("inf") if num_tokens is None else num_tokens
