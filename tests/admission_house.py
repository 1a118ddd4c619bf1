"""A queue of requests with everybody who came to it, and what must always hold of them."""

from collections import Counter

from serve.admission import AdmissionQueue, Ticket

AGE_S = 1.0


class House:
    """A queue with everybody who came to it. After each step it checks what must always hold."""

    def __init__(self, max_running: int, max_loras: int) -> None:
        self.max_running, self.max_loras = max_running, max_loras
        self.queue = AdmissionQueue(max_running, max_loras, AGE_S)
        self.now_s = 1000.0
        self.num_completions = 0
        self.tickets: list[Ticket] = []

    def of(self, state: str) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.state == state]

    def come(self, tenant_id: str, adapter: str | None = None, priority: int = 0, *, times: int = 1) -> list[Ticket]:
        """Requests that come one after the other, each let in at once where it may run."""
        came = []
        for _ in range(times):
            came.append(self.queue.arrive(tenant_id, adapter, priority, self.now_s))
            self.tickets.append(came[-1])
            self.settle()
        return came

    def finish(self, ticket: Ticket) -> list[Ticket]:
        """End a request; returns those that run in its place."""
        assert ticket.state == "running"
        self.num_completions += 1
        return self.go(ticket)

    def go(self, ticket: Ticket) -> list[Ticket]:
        self.queue.leave(ticket)
        self.tickets.remove(ticket)
        return self.settle()

    def settle(self) -> list[Ticket]:
        admitted = list(iter(lambda: self.queue.admit_next(self.now_s), None))
        self.check()
        return admitted

    def check(self) -> None:
        running, waiting = self.of("running"), self.of("waiting")
        slots = {ticket.adapter for ticket in running} - {None}
        assert len(running) <= self.max_running
        assert len(slots) <= self.max_loras
        assert self.queue.running_by_adapter() == dict(Counter(ticket.adapter for ticket in running))
        assert sum(self.queue.waiting_by_reason(self.now_s).values()) == self.queue.num_waiting == len(waiting)
        assert self.queue.num_tenants == len({ticket.tenant_id for ticket in self.tickets})
        if len(running) < self.max_running:
            assert self.adapters_that_fit(waiting, slots) & {ticket.adapter for ticket in waiting} == set()

    def adapters_that_fit(self, waiting: list[Ticket], slots: set[str | None]) -> set[str | None]:
        """Those that nothing keeps out: neither the limit of slots, nor somebody who waited too long for one."""
        wanted = {ticket.adapter for ticket in waiting} - slots - {None}
        if len(slots) < self.max_loras:
            return {None} | slots | wanted
        is_overdue = any(t.adapter in wanted and self.now_s - t.arrived_s > AGE_S for t in waiting)
        return {None} if is_overdue else {None} | slots


def tenants(tickets: list[Ticket]) -> list[str]:
    return [ticket.tenant_id for ticket in tickets]
