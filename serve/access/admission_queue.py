"""Scheduling decisions: which request runs next, and which adapter is loaded next."""

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

from serve.access.adapter_slots import MAX_LOADS, AdapterSlots
from serve.access.capacity import Ask, Capacity, EngineShare, Ticket, sum_of
from serve.access.fairness import TokenCounters

Reason = Literal["capacity", "adapter_slots", "adapter_load", "tenant"]
REASONS: tuple[Reason, ...] = ("capacity", "adapter_slots", "adapter_load", "tenant")


@dataclass
class _Tenant:
    """Waiting and running sequences of a tenant.

    `last_turn_s` is keyed by priority and by whether the turn was for an adapter slot: those age separately.
    """

    num_waiting: int = 0
    num_running: int = 0
    last_turn_s: dict[tuple[int, bool], float] = field(default_factory=dict)


class AdmissionQueue:
    """Decides which request runs next. Time is an argument, so the same calls give the same decisions.

    A request may run when its adapter is loaded and all its sequences fit (capacity.py). The next one has the lowest
    priority, then the tenant with the fewest tokens (fairness.py), then the earliest arrival. Each `age_s` since a
    tenant's last turn at a priority counts as one level less, which prevents starvation. If the next one does not fit,
    others may run before it, up to one batch of sequences; then free capacity is kept for it. Tenants without running
    requests may always use the reserve. If it exceeds its tenant's share, later requests of that tenant may run before
    it, again up to one batch; then they wait until it runs. Batches (`Ask.is_batch`) pass no client, are never
    overdue and never use the reserve.

    An adapter takes a slot when a request first waits for it, is loaded, and keeps the slot while requests wait or run.
    A request that waits for a slot longer than `age_s` is overdue. Then one adapter for each overdue one is closed: it
    admits no new requests until it has drained. Adapters without running requests come first and lose their slot at
    once, then those that have held a slot longest. An adapter is closed only after it has had its share of a batch, or
    slots would be swapped for every request. If a long answer still holds a slot, all served adapters are closed once a
    whole batch has passed the overdue request.

    Args:
        max_sequences: Maximum running sequences.
        max_adapters: Number of adapter slots.
        num_tenants: Number of tenants, including those without a request.
        is_resident: Whether an adapter is already loaded.
        kv_tokens: Size of the KV cache in tokens; None if unknown.
    """

    def __init__(
        self,
        max_sequences: int,
        max_adapters: int,
        age_s: float = 1.0,
        *,
        num_tenants: Callable[[], int] = lambda: 1,
        is_resident: Callable[[str], bool] = lambda adapter: True,
        kv_tokens: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.capacity = Capacity(max_sequences, num_tenants, kv_tokens)
        self._slots = AdapterSlots(max_adapters, max_sequences, age_s)
        self._counters = TokenCounters()
        self._batch_counters = TokenCounters()  # what batches use makes no client's turn earlier or later
        self._age_s = age_s
        self._is_resident = is_resident
        self._num_arrived = 0
        self._lines: dict[tuple[str, int, str | None], deque[Ticket]] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._num_waiting_for: Counter[str | None] = Counter()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def num_waiting_for_places(self) -> int:
        """Waiting requests, without those that wait only for a load and would fit now."""
        num_loading = sum(num for adapter, num in self._num_waiting_for.items() if self.is_loading(adapter))
        num_free = self.capacity.max_sequences - self.capacity.num_sequences
        return self.num_waiting - min(num_loading, num_free)

    @property
    def demand(self) -> EngineShare:
        """What runs and waits."""
        shares = (ticket.ask.share for line in self._lines.values() for ticket in line)
        return sum_of((self.capacity.used, *shares))

    @property
    def num_tenants(self) -> int:
        """Tenants with waiting or running requests."""
        return len(self._tenants)

    @property
    def num_client_sequences(self) -> int:
        """Running sequences that clients wait for."""
        return sum(ticket.ask.num_sequences for ticket in self.capacity.running if not ticket.ask.is_batch)

    @property
    def num_clients_waiting(self) -> int:
        """Waiting requests of clients, not of batches."""
        return sum(len(line) for line in self._lines.values() if not line[0].ask.is_batch)

    @property
    def most_of_a_tenant(self) -> int:
        """Maximum running sequences of one tenant, and so of one request."""
        return self.capacity.without_reserve(self.capacity.max_sequences)

    @property
    def adapters(self) -> Collection[str]:
        """Adapters that hold a slot, loaded or being loaded."""
        return self._slots.names

    @property
    def is_short_of_slots(self) -> bool:
        """Whether a request waits for a slot and none is free."""
        return self._slots.num_free <= 0 and any(self._needs_slot(head.ask.adapter) for head in self._heads())

    def arrive(self, ask: Ask, now_s: float) -> Ticket:
        """Append a request to its queue."""
        assert 1 <= ask.num_sequences <= self.capacity.max_sequences
        self._num_arrived += 1
        ticket = Ticket(ask, now_s, self._num_arrived)
        self._lines.setdefault(ask.line, deque()).append(ticket)
        self._tenants.setdefault(ask.tenant_id, _Tenant()).num_waiting += ask.num_sequences
        self._counters_of(ask).arrive(ask.tenant_id)
        self._num_waiting_for[ask.adapter] += 1
        return ticket

    def next_load(self, now_s: float) -> str | None:
        """Give slots to adapters that requests wait for. Returns the first that must be loaded, if any."""
        while self._heads_for_a_slot():
            self._slots.make_room(self._closed(self._overdue(now_s), now_s))
            if self._slots.num_free <= 0:
                return None
            ask = self._best(self._heads_for_a_slot(), now_s).ask
            assert ask.adapter is not None
            self._tenants[ask.tenant_id].last_turn_s[ask.priority, True] = now_s
            self._slots.take(ask.adapter, ask.tenant_id, now_s)
            if not self._is_resident(ask.adapter):
                return ask.adapter
            self._slots.loaded(ask.adapter, now_s)
        return None

    def loaded(self, adapter: str, now_s: float) -> None:
        """A load has ended."""
        for ticket in self._waiting_for(adapter):
            ticket.load_s = (ticket.load_s or 0.0) + now_s - max(ticket.arrived_s, self._slots.taken_s(adapter))
        self._slots.loaded(adapter, now_s)
        self._free_if_idle(adapter)

    def not_loaded(self, adapter: str) -> list[Ticket]:
        """A load has failed. Returns the requests that wait for it; if any stays, the load is repeated."""
        self._slots.remove(adapter)
        return self._waiting_for(adapter)

    def admit_next(self, now_s: float) -> Ticket | None:
        """Start the next request; None if none may run."""
        if not self._lines or self.capacity.num_sequences >= self.capacity.max_sequences:
            return None
        overdue = self._overdue(now_s)
        closed = self._closed(overdue, now_s)
        heads = [head for head in self._heads() if self._is_ready(head.ask.adapter, closed)]
        over = [head for head in heads if not self._is_within_share(head.ask)]
        kept_for = [head for head in over if self._is_out_of_patience(head)]
        heads = [head for head in heads if head not in over and not any(_is_passed_by(each, head) for each in kept_for)]
        ticket = self._start_best(heads, now_s) if heads else None
        if ticket is None:
            return None
        passed = {head for head in over if _is_passed_by(head, ticket)}
        for head in passed.union(overdue if ticket.ask.adapter is not None else ()):
            head.num_passed += ticket.ask.num_sequences
        return ticket

    def leave(self, ticket: Ticket, num_tokens: int = 0) -> None:
        """Remove a waiting or running request; a second call does nothing.

        Args:
            num_tokens: Tokens that it has used.
        """
        if ticket.state == "gone":
            return
        if ticket.state == "waiting":
            self._leave_line(ticket)
        else:
            self._stop(ticket, num_tokens)
        ticket.state = "gone"
        self._counters_of(ticket.ask).leave(ticket.ask.tenant_id)
        tenant = self._tenants[ticket.ask.tenant_id]
        if tenant.num_waiting == 0 and tenant.num_running == 0:
            del self._tenants[ticket.ask.tenant_id]

    def last_to_run(self) -> Ticket:
        """The request to refuse when too many wait: a batch's; else, of the tenant with the most, the last to run."""
        waiting = [ticket for line in self._lines.values() for ticket in line]
        num_waiting = {tenant_id: tenant.num_waiting for tenant_id, tenant in self._tenants.items()}
        return max(waiting, key=lambda t: (t.ask.is_batch, num_waiting[t.ask.tenant_id], t.ask.priority, t.sequence))

    def waiting_by_reason(self, now_s: float) -> dict[str, int]:
        """Number of waiting requests by reason (`REASONS`)."""
        closed = self._closed(self._overdue(now_s), now_s)
        counts: dict[str, int] = dict.fromkeys(REASONS, 0)
        for line in self._lines.values():
            counts[self._reason(line[0], closed)] += len(line)
        return counts

    def reason(self, ticket: Ticket, now_s: float) -> Reason:
        """The reason why a request waits."""
        return self._reason(ticket, self._closed(self._overdue(now_s), now_s))

    def running_by_adapter(self) -> dict[str | None, int]:
        """Running requests by adapter; None is the base model."""
        return dict(Counter(ticket.ask.adapter for ticket in self.capacity.running))

    def waiting_by_adapter(self) -> dict[str | None, int]:
        """Waiting requests by adapter; None is the base model."""
        return dict(self._num_waiting_for)

    def running_by_tenant(self) -> dict[str, int]:
        """Running sequences by tenant."""
        return {name: tenant.num_running for name, tenant in self._tenants.items() if tenant.num_running}

    def is_loading(self, adapter: str | None) -> bool:
        return adapter is not None and adapter in self._slots and not self._slots.is_loaded(adapter)

    def _waiting_for(self, adapter: str) -> list[Ticket]:
        return [ticket for line in self._lines.values() for ticket in line if ticket.ask.adapter == adapter]

    def _heads(self) -> list[Ticket]:
        return [line[0] for line in self._lines.values()]

    def _heads_for_a_slot(self) -> list[Ticket]:
        """First requests of their queues that may start a load now, of the tenants with the fewest loads."""
        loading = self._slots.loading_by_tenant()
        most_of_one = self.capacity.without_reserve(MAX_LOADS)
        heads = []
        for head in self._heads():
            if not self._needs_slot(head.ask.adapter):
                continue
            limit = most_of_one if loading[head.ask.tenant_id] else MAX_LOADS
            if loading.total() < limit or (head.ask.adapter and self._is_resident(head.ask.adapter)):
                heads.append(head)
        fewest = min((loading[head.ask.tenant_id] for head in heads), default=0)
        return [head for head in heads if loading[head.ask.tenant_id] == fewest]

    def _overdue(self, now_s: float) -> list[Ticket]:
        """The first request of each queue that has waited too long for a slot."""
        if self._slots.num_free > 0:
            return []
        late_s = now_s - self._age_s
        clients = (head for head in self._heads() if not head.ask.is_batch)
        return [head for head in clients if self._needs_slot(head.ask.adapter) and head.arrived_s < late_s]

    def _closed(self, overdue: list[Ticket], now_s: float) -> Collection[str]:
        num_passed = max((ticket.num_passed for ticket in overdue), default=0)
        return self._slots.closed(len({ticket.ask.adapter for ticket in overdue}), num_passed, now_s)

    def _needs_slot(self, adapter: str | None) -> bool:
        return adapter is not None and adapter not in self._slots

    def _is_ready(self, adapter: str | None, closed: Collection[str]) -> bool:
        return adapter is None or (self._slots.is_loaded(adapter) and adapter not in closed)

    def _start_best(self, heads: list[Ticket], now_s: float) -> Ticket | None:
        """Start the best of some requests that fits."""
        first = self._best(heads, now_s)
        is_room_kept = self._is_out_of_patience(first)
        num_refilled = 0 if is_room_kept else self.capacity.refill_reserve()
        if self.capacity.fits(first.ask):
            return self._start(first, now_s)
        first.num_passed += num_refilled
        if newcomers := [head for head in heads if self._fits_reserve(head)]:
            return self._start(self._best(newcomers, now_s), now_s, is_in_reserve=True)
        fitting = [head for head in heads if self.capacity.fits(head.ask) and self._may_pass(head, first)]
        if is_room_kept or not fitting:
            return None
        ticket = self._best(fitting, now_s)
        first.num_passed += ticket.ask.num_sequences
        return self._start(ticket, now_s)

    def _is_out_of_patience(self, ticket: Ticket) -> bool:
        return ticket.num_passed >= self.capacity.max_sequences

    def _counters_of(self, ask: Ask) -> TokenCounters:
        return self._batch_counters if ask.is_batch else self._counters

    def _num_used(self, ask: Ask) -> float:
        return self._counters_of(ask).tokens(ask.tenant_id)

    def _may_pass(self, ticket: Ticket, first: Ticket) -> bool:
        """Whether its tenant is ahead by at most a batch of tokens, so that passing gives no larger share.

        Clients pass a batch whatever they have used, and a batch passes no client.
        """
        if ticket.ask.is_batch != first.ask.is_batch:
            return first.ask.is_batch
        ahead = self._num_used(ticket.ask) - self._num_used(first.ask)
        return ahead <= first.ask.num_tokens / first.ask.num_sequences * self.capacity.max_sequences

    def _fits_reserve(self, ticket: Ticket) -> bool:
        is_newcomer = not ticket.ask.is_batch and not self._tenants[ticket.ask.tenant_id].num_running
        return is_newcomer and self.capacity.fits_reserve(ticket.ask)

    def _is_within_share(self, ask: Ask) -> bool:
        """Whether its tenant would leave the reserve free; always true if it has no running requests."""
        num_running = self._tenants[ask.tenant_id].num_running
        return num_running + ask.num_sequences <= self.most_of_a_tenant or not num_running

    def _best(self, heads: list[Ticket], now_s: float) -> Ticket:
        """The best request of the most urgent priority, unless a less urgent one has aged past it."""
        urgent = min(head.ask.priority for head in heads)
        best = min((head for head in heads if head.ask.priority == urgent), key=self._rank)
        others = [head for head in heads if head.ask.priority > urgent]
        if others:
            aged = min(others, key=lambda head: (self._level(head, now_s), *self._rank(head)))
            return aged if self._level(aged, now_s) < self._level(best, now_s) else best
        return best

    def _rank(self, ticket: Ticket) -> tuple[float, int]:
        """Sort key within a priority; lower runs first."""
        return self._num_used(ticket.ask), ticket.sequence

    def _level(self, ticket: Ticket, now_s: float) -> tuple[int, float]:
        """The aged priority, and the time from which it has aged."""
        turn = ticket.ask.priority, self._needs_slot(ticket.ask.adapter)
        since_s = max(ticket.arrived_s, self._tenants[ticket.ask.tenant_id].last_turn_s.get(turn, 0.0))
        return ticket.ask.priority - int((now_s - since_s) / self._age_s), since_s

    def _start(self, ticket: Ticket, now_s: float, *, is_in_reserve: bool = False) -> Ticket:
        ask = ticket.ask
        tenant = self._tenants[ask.tenant_id]
        tenant.last_turn_s[ask.priority, False] = now_s
        tenant.num_running += ask.num_sequences
        self.capacity.take(ticket, is_in_reserve=is_in_reserve)
        self._counters_of(ask).start(ask.tenant_id, ask.num_tokens)
        if ask.adapter is not None:
            self._slots.start(ask.adapter, ask.num_sequences)
        self._leave_line(ticket)
        ticket.state = "running"
        return ticket

    def _stop(self, ticket: Ticket, num_tokens: int) -> None:
        ask = ticket.ask
        self._tenants[ask.tenant_id].num_running -= ask.num_sequences
        self.capacity.give_back(ticket)
        self._counters_of(ask).stop(ask.tenant_id, ask.num_tokens, num_tokens)
        if ask.adapter is not None:
            self._slots.stop(ask.adapter)
            self._free_if_idle(ask.adapter)

    def _leave_line(self, ticket: Ticket) -> None:
        ask = ticket.ask
        line = self._lines[ask.line]
        line.remove(ticket)
        if not line:
            del self._lines[ask.line]
        self._tenants[ask.tenant_id].num_waiting -= ask.num_sequences
        self._num_waiting_for[ask.adapter] -= 1
        if not self._num_waiting_for[ask.adapter]:
            del self._num_waiting_for[ask.adapter]
            self._free_if_idle(ask.adapter)

    def _free_if_idle(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._num_waiting_for:
            self._slots.free_if_idle(adapter)

    def _reason(self, ticket: Ticket, closed: Collection[str]) -> Reason:
        adapter = ticket.ask.adapter
        if not self._is_ready(adapter, closed):
            is_loading = adapter in self._slots and adapter not in closed
            return "adapter_load" if is_loading or self._slots.num_free > 0 else "adapter_slots"
        # An equal share of the places among the present tenants.
        num_running = self._tenants[ticket.ask.tenant_id].num_running
        has_its_share = num_running * self.num_tenants >= self.most_of_a_tenant
        has_its_share |= not self._is_within_share(ticket.ask)
        is_alone = self.num_tenants == 1 and not self.capacity.has_reserve
        return "tenant" if has_its_share and not is_alone else "capacity"


def _is_passed_by(waiting: Ticket, ticket: Ticket) -> bool:
    """Whether `ticket` is a later request of the same tenant."""
    return waiting.ask.tenant_id == ticket.ask.tenant_id and waiting.sequence < ticket.sequence
