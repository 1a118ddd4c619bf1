"""Limits of API keys over all replicas: one `KeyLimits` counts, each replica asks it through `SharedLimits`."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

from serve.access.keys import KeyRecord
from serve.access.tenants import Share, TenantLease, TenantLimits
from serve.errors import RateLimitedError

logger = logging.getLogger(__name__)

_ASK_TIMEOUT_S = 1.0
_RETRY_S = 5.0
_SEEN_EVERY_S = 5.0
_GONE_AFTER_S = 30.0


@dataclass(frozen=True)
class Refusal:
    """A `RateLimitedError` on its way between processes."""

    message: str
    retry_after_s: float
    reason: str


class KeyLimits:
    """Counts for all replicas; runs in a process of its own.

    What a replica holds is given back where nothing was heard of it for half a minute: it has died.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits = TenantLimits(clock)
        self._leases: dict[str, dict[str, TenantLease]] = {}
        self._seen_s: dict[str, float] = {}

    async def take(self, owner: str, lease_id: str, key: KeyRecord) -> Refusal | None:
        """Take a request's place within its key's limits; None where it may run.

        Args:
            owner: The replica, which gives it back.
        """
        await self.seen(owner)
        try:
            self._leases.setdefault(owner, {})[lease_id] = self._limits.lease(key)
        except RateLimitedError as error:
            return Refusal(str(error), error.retry_after_s or 0.0, error.reason)
        return None

    async def give(self, owner: str, lease_id: str) -> None:
        """Give a place back."""
        lease = self._leases.get(owner, {}).pop(lease_id, None)
        if lease is not None:
            lease.release()

    async def debit(self, key: KeyRecord, num_tokens: int) -> None:
        """Charge a finished request's tokens."""
        self._limits.debit(key, num_tokens)

    async def seen(self, owner: str) -> None:
        """The replica lives; others that were not seen for long do not."""
        now_s = self._seen_s[owner] = self._clock()
        for gone in [each for each, at_s in self._seen_s.items() if now_s - at_s > _GONE_AFTER_S]:
            del self._seen_s[gone]
            for lease in self._leases.pop(gone, {}).values():
                lease.release()


class RemoteKeyLimits(Protocol):
    """`KeyLimits` in another process."""

    def take(self, owner: str, lease_id: str, key: KeyRecord) -> Awaitable[Refusal | None]: ...

    def give(self, owner: str, lease_id: str) -> Awaitable[None]: ...

    def debit(self, key: KeyRecord, num_tokens: int) -> Awaitable[None]: ...

    def seen(self, owner: str) -> Awaitable[None]: ...


class SharedLimits:
    """A replica's use of the shared limits, for one event loop.

    Where they cannot be reached, the replica goes on with limits of its own, and tries again after five seconds.
    Requests of keys without any limit never ask.
    """

    def __init__(self, remote: RemoteKeyLimits, owner: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._remote = remote
        self._owner = owner
        self._clock = clock
        self._own = TenantLimits(clock)
        self._away_until_s: float | None = None
        self._telling: set[asyncio.Task[None]] = set()

    async def take(self, key: KeyRecord) -> Share:
        """Take a request's place within its key's limits.

        Raises:
            RateLimitedError: Over a limit.
        """
        if not _is_limited(key) or self._is_away():
            return self._own.lease(key)
        lease_id = uuid4().hex
        asked = asyncio.ensure_future(self._remote.take(self._owner, lease_id, key))
        try:
            refusal = await asyncio.wait_for(asyncio.shield(asked), _ASK_TIMEOUT_S)
        except asyncio.CancelledError:
            self._give_late(asked, lease_id)
            raise
        except Exception as error:  # boundary: whatever keeps us from it, requests are answered
            self._give_late(asked, lease_id)
            self._note_away(error)
            return self._own.lease(key)
        self._note_back()
        if refusal is not None:
            raise RateLimitedError(refusal.message, refusal.retry_after_s, refusal.reason)
        return SharedLease(self, key, lease_id)

    async def run(self) -> None:
        """Say that this replica lives, until cancelled."""
        while True:
            self.tell(self._remote.seen(self._owner))
            await asyncio.sleep(_SEEN_EVERY_S)

    def give(self, lease_id: str) -> None:
        self.tell(self._remote.give(self._owner, lease_id))

    def debit(self, key: KeyRecord, num_tokens: int) -> None:
        self.tell(self._remote.debit(key, num_tokens))

    def tell(self, message: Awaitable[None]) -> None:
        """Send what nobody waits for."""
        task = asyncio.ensure_future(self._sent(message))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _sent(self, message: Awaitable[None]) -> None:
        try:
            await asyncio.wait_for(_as_coroutine(message), _ASK_TIMEOUT_S)
        except Exception as error:  # boundary: the next request that must ask says so
            logger.debug("The shared limits of keys were not told: %r", error)

    def _give_late(self, asked: "asyncio.Future[Refusal | None]", lease_id: str) -> None:
        """Nobody waits for a place that may be granted yet."""

        def give(done: "asyncio.Future[Refusal | None]") -> None:
            if not done.cancelled() and done.exception() is None and done.result() is None:
                self.give(lease_id)

        asked.add_done_callback(give)

    def _is_away(self) -> bool:
        return self._away_until_s is not None and self._clock() < self._away_until_s

    def _note_away(self, error: Exception) -> None:
        if self._away_until_s is None:
            logger.warning(
                "The shared limits of keys cannot be reached (%r): this replica applies its own until they can.", error
            )
        self._away_until_s = self._clock() + _RETRY_S

    def _note_back(self) -> None:
        if self._away_until_s is not None:
            logger.info("The shared limits of keys are reached again.")
        self._away_until_s = None


class SharedLease:
    """A request that runs within its key's shared limits."""

    def __init__(self, limits: SharedLimits, key: KeyRecord, lease_id: str) -> None:
        self._limits = limits
        self._key = key
        self._lease_id = lease_id
        self._is_released = False

    def __enter__(self) -> "SharedLease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def debit(self, num_tokens: int) -> None:
        """Charge the request's prompt and completion tokens, once they are known; also after the release."""
        if num_tokens and self._key.tokens_per_minute is not None:
            self._limits.debit(self._key, num_tokens)

    def release(self) -> None:
        """Give the request's place back; only the first call counts."""
        if not self._is_released:
            self._is_released = True
            self._limits.give(self._lease_id)


def _is_limited(key: KeyRecord) -> bool:
    return (key.requests_per_minute, key.tokens_per_minute, key.max_concurrency) != (None, None, None)


def _as_coroutine(awaited: Awaitable[None]) -> Coroutine[Any, Any, None]:
    async def wait() -> None:
        await awaited

    return wait()
