"""A queue of requests with everybody who came to it, and what must always hold of them."""

from collections import Counter

from serve.access.adapter_slots import MAX_LOADS
from serve.access.admission_queue import AdmissionQueue
from serve.access.capacity import Ask, Ticket, reserved

AGE_S = 1.0


class House:
    """A queue with everybody who came to it. After each step it checks what must always hold.

    Args:
        num_tenants: How many have a key; with more than one there is a reserve.
        cold: Adapters that must be loaded; `loaded` ends a load.
    """

    def __init__(
        self,
        max_running: int,
        max_loras: int,
        num_tenants: int = 1,
        cold: frozenset[str] = frozenset(),
        kv_tokens: int | None = None,
    ) -> None:
        self.max_running, self.max_loras, self.num_tenants = max_running, max_loras, num_tenants
        self.kv_tokens = kv_tokens
        self.cold = set(cold)
        self.queue = AdmissionQueue(
            max_running,
            max_loras,
            AGE_S,
            num_tenants=lambda: self.num_tenants,
            is_resident=lambda adapter: adapter not in self.cold,
            kv_tokens=lambda: self.kv_tokens,
        )
        self.now_s = 1000.0
        self.num_completions = 0
        self.tickets: list[Ticket] = []
        self.loading: list[str] = []

    def of(self, state: str) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.state == state]

    def come(
        self,
        tenant_id: str,
        adapter: str | None = None,
        priority: int = 0,
        *,
        times: int = 1,
        size: int = 1,
        num_tokens: int = 1,
    ) -> list[Ticket]:
        """Requests that come one after the other, each let in at once where it may run."""
        came = []
        for _ in range(times):
            ask = Ask(tenant_id, adapter, priority, size, num_tokens)
            came.append(self.queue.arrive(ask, self.now_s))
            self.tickets.append(came[-1])
            self.settle()
        return came

    def finish(self, ticket: Ticket, num_tokens: int = 1) -> list[Ticket]:
        """End a request; returns those that run in its place."""
        assert ticket.state == "running"
        self.num_completions += 1
        return self.go(ticket, num_tokens)

    def go(self, ticket: Ticket, num_tokens: int = 0) -> list[Ticket]:
        self.queue.leave(ticket, num_tokens)
        self.tickets.remove(ticket)
        return self.settle()

    def loaded(self, adapter: str) -> list[Ticket]:
        """End a load; returns those that run now."""
        self.loading.remove(adapter)
        self.cold.discard(adapter)
        self.queue.loaded(adapter, self.now_s)
        return self.settle()

    def settle(self) -> list[Ticket]:
        self.loading += iter(lambda: self.queue.next_load(self.now_s), None)
        admitted = list(iter(lambda: self.queue.admit_next(self.now_s), None))
        self.check()
        return admitted

    def check(self) -> None:
        running, waiting = self.of("running"), self.of("waiting")
        num_running = sum(ticket.ask.num_sequences for ticket in running)
        slots = {ticket.ask.adapter for ticket in running} - {None}
        assert num_running == self.queue.capacity.num_sequences <= self.max_running
        assert slots <= set(self.queue.adapters)
        assert len(self.queue.adapters) <= self.max_loras
        assert len(self.loading) <= MAX_LOADS
        assert set(self.loading) <= set(self.queue.adapters)
        assert not slots & set(self.loading)
        assert self.queue.running_by_adapter() == dict(Counter(ticket.ask.adapter for ticket in running))
        assert sum(self.queue.waiting_by_reason(self.now_s).values()) == self.queue.num_waiting == len(waiting)
        assert self.queue.num_tenants == len({ticket.ask.tenant_id for ticket in self.tickets})
        if self.num_tenants > 1:
            self.check_reserve()
        if num_running < self.max_running and all(ticket.ask.num_sequences == 1 for ticket in self.tickets):
            assert self.adapters_that_fit(waiting) & {ticket.ask.adapter for ticket in waiting} == set()

    def check_reserve(self) -> None:
        """No tenant holds all, unless it did so before there was another."""
        most = self.max_running - reserved(self.max_running)
        assert all(num <= most for num in self.queue.running_by_tenant().values())

    def adapters_that_fit(self, waiting: list[Ticket]) -> set[str | None]:
        """Those that nothing keeps out: neither the limit of slots, nor somebody who waited too long for one."""
        if self.num_tenants > 1:
            return set()
        held = set(self.queue.adapters)
        wanted = {ticket.ask.adapter for ticket in waiting} - held - {None}
        is_overdue = any(t.ask.adapter in wanted and self.now_s - t.arrived_s > AGE_S for t in waiting)
        return {None} if is_overdue else {None} | (held - set(self.loading))


def tenants(tickets: list[Ticket]) -> list[str]:
    return [ticket.ask.tenant_id for ticket in tickets]
