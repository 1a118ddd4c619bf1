"""Fair admission: whose request runs next, and which adapters are in the engine at a time.

There are so many places for requests, and so many slots for adapters: here, those of host memory, whose adapters take
turns in the engine's (serve/engine/slots.py), or the engine's own where they do not. A request for one more would wait
inside vLLM for as long as the busy ones stay busy. So it waits here: `AdmissionQueue` decides, `Admission` waits.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from serve.errors import RateLimitedError

Reason = Literal["capacity", "adapter_slots", "tenant"]

_WHY: dict[Reason, str] = {
    "capacity": "all places were taken",
    "adapter_slots": "all adapter slots were in use",
    "tenant": "other requests of this tenant took its share of the places",
}


@dataclass(eq=False)
class Ticket:
    """One request: it waits, it runs, it is gone."""

    tenant_id: str
    adapter: str | None
    priority: int
    arrived_s: float
    sequence: int
    state: Literal["waiting", "running", "gone"] = "waiting"
    num_passed: int = 0
    """Requests of running adapters that were let in while this one had waited too long for a slot."""


@dataclass
class _Tenant:
    """`last_turn_s` is by priority, and by whether the turn took a new adapter slot."""

    num_waiting: int = 0
    num_running: int = 0
    last_turn_s: dict[tuple[int, bool], float] = field(default_factory=dict)


@dataclass
class _Slot:
    """What an adapter has had since it got its slot."""

    num_running: int = 0
    num_admitted: int = 0


class AdmissionQueue:
    """Decides who runs next. Time comes in as an argument, so the same calls give the same answers.

    A request may run when there is a place, and its adapter has a slot or can get one. Of those that may, the next is
    the one with the lowest priority, then of the tenant with fewest running, then the oldest. Age counts from the last
    turn of the tenant at that priority, so that many requests make nobody older; and every `age_s` of it makes up for
    one level of priority, so that nobody starves.

    A request has waited too long for a slot after `age_s`. Then the adapters that hold slots longest take nobody new,
    one for each adapter that waits so, until they have drained. Every adapter may first let in its share of a batch,
    or slots would change hands for one request each. Where that is not enough, because a long answer holds a slot, all
    of them take nobody new once `max_running` requests have passed the one that waits.
    """

    def __init__(self, max_running: int, max_adapters: int, age_s: float = 1.0) -> None:
        assert max_running >= 1
        assert max_adapters >= 1
        self._max_running = max_running
        self._max_adapters = max_adapters
        self._age_s = age_s
        self._share = max(1, max_running // max_adapters)
        self._num_running = 0
        self._num_arrived = 0
        # Requests in one line are alike in all but age, so only the first one is ever looked at.
        self._lines: dict[tuple[str, int, str | None], deque[Ticket]] = {}
        self._tenants: dict[str, _Tenant] = {}
        # In the order in which the adapters got their slots.
        self._slots: dict[str, _Slot] = {}

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def num_running(self) -> int:
        return self._num_running

    @property
    def num_tenants(self) -> int:
        """Tenants with a request that waits or runs; nothing is kept of others."""
        return len(self._tenants)

    def arrive(self, tenant_id: str, adapter: str | None, priority: int, now_s: float) -> Ticket:
        """Put a request at the end of its line; `adapter` None is the base model."""
        self._num_arrived += 1
        ticket = Ticket(tenant_id, adapter, priority, now_s, self._num_arrived)
        self._lines.setdefault(_line_of(ticket), deque()).append(ticket)
        self._tenants.setdefault(tenant_id, _Tenant()).num_waiting += 1
        return ticket

    def admit_next(self, now_s: float) -> Ticket | None:
        """Start the request whose turn it is; None where nobody may run."""
        if self._num_running >= self._max_running or not self._lines:
            return None
        overdue = self._overdue(now_s)
        closed = self._closed(overdue)
        heads = [line[0] for line in self._lines.values() if self._has_slot(line[0].adapter, closed)]
        if not heads:
            return None
        ticket = min(heads, key=lambda head: self._rank(head, now_s))
        if ticket.adapter is not None:
            for passed in overdue:
                passed.num_passed += 1
        self._start(ticket, now_s)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Forget a request, whether it waits or runs; a second call does nothing."""
        if ticket.state == "waiting":
            self._leave_line(ticket)
        elif ticket.state == "running":
            self._stop(ticket)
        ticket.state = "gone"

    def last_to_run(self) -> Ticket:
        """The request to refuse where too many wait: of the tenant with most of them, the newest of least priority."""
        waiting = [ticket for line in self._lines.values() for ticket in line]
        return max(waiting, key=lambda t: (self._tenants[t.tenant_id].num_waiting, t.priority, t.sequence))

    def waiting_by_reason(self, now_s: float) -> dict[str, int]:
        """How many wait for a place, for an adapter slot, or for their tenant to have fewer running."""
        closed = self._closed(self._overdue(now_s))
        counts: dict[str, int] = dict.fromkeys(_WHY, 0)
        for line in self._lines.values():
            counts[self._reason(line[0], closed)] += len(line)
        return counts

    def reason(self, ticket: Ticket, now_s: float) -> Reason:
        """Why a request waits."""
        return self._reason(ticket, self._closed(self._overdue(now_s)))

    def running_by_adapter(self) -> dict[str | None, int]:
        """How many run, by adapter; None is the base model."""
        running: dict[str | None, int] = {name: slot.num_running for name, slot in self._slots.items()}
        num_base = self._num_running - sum(running.values())
        if num_base:
            running[None] = num_base
        return running

    def _overdue(self, now_s: float) -> list[Ticket]:
        """The first of each line that has waited too long for a slot."""
        if len(self._slots) < self._max_adapters:
            return []
        heads = [line[0] for line in self._lines.values()]
        return [head for head in heads if self._needs_slot(head.adapter) and now_s - head.arrived_s > self._age_s]

    def _closed(self, overdue: list[Ticket]) -> Collection[str]:
        """The running adapters that take nobody new, so that a slot becomes free for those who are overdue."""
        if not overdue:
            return ()
        served = [name for name, slot in self._slots.items() if slot.num_admitted >= self._share]
        if any(ticket.num_passed >= self._max_running for ticket in overdue):
            return served
        return served[: len({ticket.adapter for ticket in overdue})]

    def _has_slot(self, adapter: str | None, closed: Collection[str]) -> bool:
        if self._needs_slot(adapter):
            return len(self._slots) < self._max_adapters
        return adapter not in closed

    def _needs_slot(self, adapter: str | None) -> bool:
        return adapter is not None and adapter not in self._slots

    def _rank(self, ticket: Ticket, now_s: float) -> tuple[int, int, float, int]:
        """Lower runs earlier."""
        tenant = self._tenants[ticket.tenant_id]
        last_turn_s = tenant.last_turn_s.get(self._turn_of(ticket), ticket.arrived_s)
        since_s = max(ticket.arrived_s, last_turn_s)
        level = ticket.priority - int((now_s - since_s) / self._age_s)
        return level, tenant.num_running, since_s, ticket.sequence

    def _turn_of(self, ticket: Ticket) -> tuple[int, bool]:
        """Turns that take a slot are counted for themselves: they are rarer, and other turns are no help there."""
        return ticket.priority, self._needs_slot(ticket.adapter)

    def _start(self, ticket: Ticket, now_s: float) -> None:
        tenant = self._tenants[ticket.tenant_id]
        tenant.last_turn_s[self._turn_of(ticket)] = now_s
        tenant.num_running += 1
        self._num_running += 1
        self._leave_line(ticket)
        ticket.state = "running"
        if ticket.adapter is not None:
            slot = self._slots.setdefault(ticket.adapter, _Slot())
            slot.num_running += 1
            slot.num_admitted += 1

    def _stop(self, ticket: Ticket) -> None:
        self._num_running -= 1
        self._tenants[ticket.tenant_id].num_running -= 1
        self._forget_if_gone(ticket.tenant_id)
        if ticket.adapter is not None:
            slot = self._slots[ticket.adapter]
            slot.num_running -= 1
            if slot.num_running == 0:
                del self._slots[ticket.adapter]

    def _leave_line(self, ticket: Ticket) -> None:
        line = self._lines[_line_of(ticket)]
        line.remove(ticket)
        if not line:
            del self._lines[_line_of(ticket)]
        self._tenants[ticket.tenant_id].num_waiting -= 1
        self._forget_if_gone(ticket.tenant_id)

    def _forget_if_gone(self, tenant_id: str) -> None:
        tenant = self._tenants[tenant_id]
        if tenant.num_waiting == 0 and tenant.num_running == 0:
            del self._tenants[tenant_id]

    def _reason(self, ticket: Ticket, closed: Collection[str]) -> Reason:
        if not self._has_slot(ticket.adapter, closed):
            return "adapter_slots"
        # A tenant's share of the places, were they dealt out evenly to those who are here.
        has_its_share = self._tenants[ticket.tenant_id].num_running * self.num_tenants >= self._max_running
        return "tenant" if self.num_tenants > 1 and has_its_share else "capacity"


class Admission:
    """Lets requests wait until `AdmissionQueue` says that they run, for one event loop.

    Args:
        max_running: Requests in the engine at a time, vLLM's `max_num_seqs`.
        max_adapters: Adapters among them at a time.
        max_waiting: Requests that wait at a time; of more, the tenant with most of them loses its newest.
        max_wait_s: A request that has waited so long is refused.
        clock: Monotonic seconds.
        age_s: Seconds after which a request has waited too long for a slot, and which make up for one priority level.
    """

    def __init__(
        self,
        max_running: int,
        max_adapters: int,
        max_waiting: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        age_s: float = 1.0,
    ) -> None:
        self._queue = AdmissionQueue(max_running, max_adapters, age_s)
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        # What each waiting request will be told: None to run, or why it may not.
        self._verdicts: dict[Ticket, asyncio.Future[RateLimitedError | None]] = {}
        # Only the loop's thread changes the queue, but metrics may be read from another one.
        self._changing = threading.Lock()

    @asynccontextmanager
    async def enter(self, tenant_id: str, adapter: str | None, priority: int = 0) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the length of the block.

        Args:
            tenant_id: Who shares fairly with others.
            adapter: vLLM's `lora_name`, `medical@3`: versions take slots of their own. None is the base model.
            priority: Lower first.

        Raises:
            RateLimitedError: Too many wait, or this one waited `max_wait_s`.
        """
        with self._changing:
            ticket = self._queue.arrive(tenant_id, adapter, priority, self._clock())
        try:
            self._admit()
            if ticket.state == "waiting":
                await self._wait(ticket)
            yield
        finally:
            # Whatever happened, a cancellation after the verdict too: the place goes on to the next.
            self._leave(ticket)

    def waiting_by_reason(self) -> dict[str, int]:
        """Requests that wait: for a place (`capacity`), a slot (`adapter_slots`) or their own tenant's (`tenant`)."""
        with self._changing:
            return self._queue.waiting_by_reason(self._clock())

    def running_by_adapter(self) -> dict[str | None, int]:
        """Requests that hold a place, by adapter; None is the base model."""
        with self._changing:
            return self._queue.running_by_adapter()

    def is_busy(self) -> bool:
        """Whether any request holds a place."""
        return self._queue.num_running > 0

    async def _wait(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        verdict = self._verdicts[ticket] = loop.create_future()
        deadline = loop.call_later(self._max_wait_s, self._refuse_late, ticket)
        try:
            if self._queue.num_waiting > self._max_waiting:
                self._refuse(
                    self._queue.last_to_run(), "queue_full", f"its queue of {self._max_waiting} requests is full"
                )
            refusal = await verdict
        finally:
            deadline.cancel()
            del self._verdicts[ticket]
        if refusal is not None:
            raise refusal

    def _admit(self) -> None:
        while (ticket := self._next()) is not None:
            self._tell(ticket, None)

    def _next(self) -> Ticket | None:
        with self._changing:
            return self._queue.admit_next(self._clock())

    def _leave(self, ticket: Ticket) -> None:
        with self._changing:
            self._queue.leave(ticket)
        self._admit()

    def _refuse_late(self, ticket: Ticket) -> None:
        # A verdict may have come in this turn of the loop, before the request could act on it.
        if ticket.state == "waiting":
            why = _WHY[self._queue.reason(ticket, self._clock())]
            self._refuse(ticket, "queue_timeout", f"the request waited {self._max_wait_s:g} s, and {why}")

    def _refuse(self, ticket: Ticket, reason: str, why: str) -> None:
        # Until then, everybody who waits now has run or been refused.
        retry_after_s = self._max_wait_s
        error = RateLimitedError(f"The server is busy: {why}. Retry in {retry_after_s:g} s.", retry_after_s, reason)
        self._tell(ticket, error)
        self._leave(ticket)

    def _tell(self, ticket: Ticket, refusal: RateLimitedError | None) -> None:
        """Give a verdict to a request that still waits for one: a new one does not, a cancelled one no more."""
        verdict = self._verdicts.get(ticket)
        if verdict is not None and not verdict.done():
            verdict.set_result(refusal)


def _line_of(ticket: Ticket) -> tuple[str, int, str | None]:
    return ticket.tenant_id, ticket.priority, ticket.adapter
