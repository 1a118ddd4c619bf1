"""Stream all events of a job as server-sent events until the job ends, or the server begins to drain."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from adapters.jobs.records import Job
from serve.access.keys import KeyRecord
from serve.api.responses import error_event
from serve.errors import RateLimitedError, ServeError
from serve.jobs.answers import event_answer
from serve.jobs.services import JobServices

_POLL_S = 0.5
_KEEP_ALIVE_S = 15.0
_PAGE = 100
_MAX_STREAMS = 64
_MAX_OF_TENANT = 8
"""Streams at once, of all tenants and of one: each asks the database twice a second, for as long as its job is there.
"""


class EventStreams:
    """The open event streams of clients."""

    def __init__(self, services: JobServices) -> None:
        self._services = services
        self._open: Counter[str] = Counter()

    def check_room(self, tenant: str) -> None:
        """Raises RateLimitedError: A tenant, or all of them, have the maximum number of open streams."""
        if self._open[tenant] >= _MAX_OF_TENANT or self._open.total() >= _MAX_STREAMS:
            raise RateLimitedError(
                f"Too many streams of events are open; a tenant may have {_MAX_OF_TENANT}. Close one, or request "
                "the events without `stream`.",
                _KEEP_ALIVE_S,
                "concurrency",
            )

    async def events(self, key: KeyRecord, job_id: str, check_key: Callable[[], object]) -> AsyncIterator[str]:
        """Events, oldest first, until the job has ended; comments keep proxies from closing an idle stream.

        A server that stops ends its streams at once, without `[DONE]`: the client connects again.

        Args:
            check_key: Raises a ServeError once the key is no longer valid.
        """
        # Counted here: a response that is never started does not end its stream.
        self._open[key.tenant] += 1
        try:
            async for text in _events(self._services, key, job_id, check_key):
                yield text
        finally:
            self._open[key.tenant] -= 1
            self._open += Counter()  # without tenants that have none


async def _events(
    services: JobServices, key: KeyRecord, job_id: str, check_key: Callable[[], object]
) -> AsyncIterator[str]:
    number, quiet_s = 0, 0.0
    try:
        while not services.draining.is_set():
            check_key()
            # Read before the events: an ended job gets no further ones.
            job: Job = await services.run(services.queue.get, key.tenant, job_id)
            events = await services.run(services.queue.events_since, key.tenant, job_id, number, _PAGE)
            for event in events:
                number = event.number
                yield f"data: {event_answer(event).model_dump_json()}\n\n"
            if not events and job.has_ended:
                yield "data: [DONE]\n\n"
                return
            quiet_s = 0.0 if events else quiet_s + _POLL_S
            if quiet_s >= _KEEP_ALIVE_S:
                quiet_s = 0.0
                yield ": still running\n\n"
            if len(events) < _PAGE:
                with suppress(TimeoutError):
                    await asyncio.wait_for(services.draining.wait(), _POLL_S)
        yield ": the server stops; connect again\n\n"
    except ServeError as error:  # the status of the response was sent long ago
        yield error_event(error)
