"""Fair admission: requests wait here for their adapter and for their places, in front of the engine, not inside it.

A request for more than the engine has room for would wait inside vLLM for as long as the busy ones stay busy, and a
load would hold a place that computes nothing. `AdmissionQueue` decides, `Admission` waits and loads.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from serve.access.admission_queue import AdmissionQueue, Reason
from serve.access.capacity import Ask, EngineShare, Ticket
from serve.background import is_told_to_end
from serve.errors import RateLimitedError

_RECHECK_INTERVAL_S = 1.0
"""Interval for rechecking slots while a request waits for one: eligibility changes with time alone."""


class Loader(Protocol):
    """Loads adapters by vLLM's `lora_name`."""

    def keep(self, adapter: str) -> AbstractContextManager[None]:
        """Protect the adapter from eviction for the length of the block."""
        ...

    async def load(self, adapter: str) -> None:
        """Load the adapter. The exception raised is passed to all requests that wait for it."""
        ...


@dataclass(frozen=True)
class ClientLoad:
    """What clients take of the engine; batches are not counted.

    `quiet_s` counts from the end of the last request of a client; 0 while there is one.
    """

    max_sequences: int
    num_sequences: int
    num_waiting: int
    quiet_s: float


@dataclass(frozen=True)
class _Waiting:
    """Verdict for a waiting request (None: run it; else the refusal), and its timeout."""

    verdict: "asyncio.Future[BaseException | None]"
    deadline: asyncio.TimerHandle


class Admission:
    """Lets requests wait until `AdmissionQueue` says that they run, for one event loop.

    Args:
        loader: Loads the adapters of those who wait.
        max_waiting: Requests that wait at a time; of more, the tenant with most of them loses its newest.
        max_wait_s: A request that has waited so long, not counting a load that is under way, is refused.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        queue: AdmissionQueue,
        loader: Loader,
        max_waiting: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._loader = loader
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._waiting: dict[Ticket, _Waiting] = {}
        self._kept: dict[str, ExitStack] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._client_seen_s = float("-inf")
        # Only the loop's thread changes the queue, but metrics may be read from another one.
        self._changing = threading.Lock()

    @property
    def most_sequences(self) -> int:
        """Maximum sequences of one request, and of one tenant at a time."""
        return self._queue.most_of_a_tenant

    @asynccontextmanager
    async def enter(self, ask: Ask, num_tokens: Callable[[], int] = lambda: 0) -> AsyncIterator[Ticket]:
        """Wait for the adapter and the places, and hold the places for the length of the block.

        Args:
            num_tokens: What the request has used, asked when it gives its places back.

        Raises:
            RateLimitedError: Too many wait, or this one waited `max_wait_s`.
            ServeError: Its adapter cannot be loaded.
        """
        self._note(ask)
        with self._changing:
            ticket = self._queue.arrive(ask, self._clock())
        try:
            self._start_ready()
            if ticket.state == "waiting":
                await self._wait(ticket)
            yield ticket
        finally:
            # Whatever happened, a cancellation after the verdict too: the places go on to the next.
            self._note(ask)
            self._leave(ticket, num_tokens())

    def demand(self) -> EngineShare:
        """What runs and waits."""
        with self._changing:
            return self._queue.demand

    def waiting_by_reason(self) -> dict[str, int]:
        """Requests that wait: for places, a slot, a load, or for their own tenant to hold less (`REASONS`)."""
        with self._changing:
            return self._queue.waiting_by_reason(self._clock())

    def running_by_adapter(self) -> dict[str | None, int]:
        """Requests that hold places, by adapter; None is the base model."""
        with self._changing:
            return self._queue.running_by_adapter()

    def waiting_by_adapter(self) -> dict[str | None, int]:
        """Requests that wait, by adapter; None is the base model."""
        with self._changing:
            return self._queue.waiting_by_adapter()

    def running_by_tenant(self) -> dict[str, int]:
        """Sequences that hold places, by tenant."""
        with self._changing:
            return self._queue.running_by_tenant()

    @property
    def adapters(self) -> Collection[str]:
        """Those that hold a slot."""
        return self._kept.keys()

    def is_busy(self) -> bool:
        """Whether any request holds a place."""
        return self._queue.capacity.num_sequences > 0

    def client_load(self) -> ClientLoad:
        """What clients take of the engine now."""
        with self._changing:
            num_sequences, num_waiting = self._queue.num_client_sequences, self._queue.num_clients_waiting
        is_here = num_sequences > 0 or num_waiting > 0
        quiet_s = 0.0 if is_here else self._clock() - self._client_seen_s
        return ClientLoad(self._queue.capacity.max_sequences, num_sequences, num_waiting, quiet_s)

    def _note(self, ask: Ask) -> None:
        """A request arrives or leaves."""
        if not ask.is_batch:
            self._client_seen_s = self._clock()

    async def _wait(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._max_wait_s, self._refuse_late, ticket)
        waiting = self._waiting[ticket] = _Waiting(loop.create_future(), deadline)
        try:
            if self._queue.num_waiting_for_places > self._max_waiting:
                self._refuse(
                    self._queue.last_to_run(), "queue_full", f"the queue of {self._max_waiting} requests is full"
                )
            refusal = await waiting.verdict
        finally:
            self._waiting.pop(ticket).deadline.cancel()
        if refusal is not None:
            raise refusal

    def _start_ready(self) -> None:
        """Start all loads and all requests that may start now."""
        while (adapter := self._next_load()) is not None:
            task = asyncio.create_task(self._load(adapter))
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)
        self._keep_adapters()
        while (ticket := self._next()) is not None:
            self._set_verdict(ticket, None)
        if self._timer is None and self._queue.is_short_of_slots:
            self._timer = asyncio.get_running_loop().call_later(_RECHECK_INTERVAL_S, self._recheck)

    def _recheck(self) -> None:
        self._timer = None
        self._start_ready()

    def _next_load(self) -> str | None:
        with self._changing:
            return self._queue.next_load(self._clock())

    def _next(self) -> Ticket | None:
        with self._changing:
            return self._queue.admit_next(self._clock())

    def _keep_adapters(self) -> None:
        """Keep those that hold a slot in the engine's memory, and no others."""
        adapters = self._queue.adapters
        if self._kept.keys() == adapters:
            return
        for adapter in self._kept.keys() - adapters:
            self._kept.pop(adapter).close()
        for adapter in adapters - self._kept.keys():
            self._kept[adapter] = ExitStack()
            self._kept[adapter].enter_context(self._loader.keep(adapter))

    async def _load(self, adapter: str) -> None:
        try:
            await self._loader.load(adapter)
        except BaseException as error:  # boundary: each request that waits for the load ends with its error
            if is_told_to_end(error):
                raise
            with self._changing:
                refused = self._queue.not_loaded(adapter)
            for ticket in refused:
                self._set_verdict(ticket, error)
                self._forget(ticket)
        else:
            with self._changing:
                self._queue.loaded(adapter, self._clock())
        self._start_ready()

    def _leave(self, ticket: Ticket, num_tokens: int = 0) -> None:
        self._forget(ticket, num_tokens)
        self._start_ready()

    def _forget(self, ticket: Ticket, num_tokens: int = 0) -> None:
        with self._changing:
            self._queue.leave(ticket, num_tokens)

    def _refuse_late(self, ticket: Ticket) -> None:
        # A verdict may have come in this turn of the loop, before the request could act on it.
        if ticket.state != "waiting":
            return
        if self._queue.is_loading(ticket.ask.adapter):
            deadline = asyncio.get_running_loop().call_later(self._max_wait_s, self._refuse_late, ticket)
            self._waiting[ticket] = _Waiting(self._waiting[ticket].verdict, deadline)
            return
        why = self._describe(ticket, self._queue.reason(ticket, self._clock()))
        self._refuse(ticket, "queue_timeout", f"the request waited {self._max_wait_s:g} s while {why}")

    def _describe(self, ticket: Ticket, reason: Reason) -> str:
        most = self._queue.capacity.max_sequences
        if reason == "tenant":
            num_running = self._queue.running_by_tenant().get(ticket.ask.tenant_id, 0)
            return f"other requests of this tenant held {num_running} of the {most} sequences"
        if reason == "capacity":
            return f"fewer than {ticket.ask.num_sequences} of the {most} sequences were free"
        return {
            "adapter_slots": "all adapter slots were in use",
            "adapter_load": "other adapters were loaded first",
        }[reason]

    def _refuse(self, ticket: Ticket, reason: str, why: str) -> None:
        # Until then, everybody who waits now has run or been refused.
        retry_after_s = self._max_wait_s
        error = RateLimitedError(f"The server is busy: {why}. Retry in {retry_after_s:g} s.", retry_after_s, reason)
        self._set_verdict(ticket, error)
        self._leave(ticket)

    def _set_verdict(self, ticket: Ticket, refusal: BaseException | None) -> None:
        """Set the verdict of a request that still waits for one."""
        waiting = self._waiting.get(ticket)
        if waiting is not None and not waiting.verdict.done():
            waiting.verdict.set_result(refusal)
