"""Rate limits per key: requests per minute, tokens per minute, concurrent requests."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from serve.access.keys import KeyRecord
from serve.errors import RateLimitedError

# Nobody knows when a running request ends; most do within seconds.
_CONCURRENCY_RETRY_S = 1.0

# Shorter waits are rounding errors of the clock.
_SHORTEST_WAIT_S = 1e-6

_SWEEP_INTERVAL_S = 60.0


class Share(AbstractContextManager["Share"], Protocol):
    """A request's place within its key's limits; `with`, or `release` where it outlives the block."""

    def debit(self, num_tokens: int) -> None:
        """Charge the request's prompt and completion tokens, once they are known; also after the release."""
        ...

    def release(self) -> None:
        """Give the request's place back; only the first call counts."""
        ...


class KeyLimiter(Protocol):
    """Who counts what keys use: this server, or one for several."""

    async def take(self, key: KeyRecord) -> Share:
        """Take a request's place within its key's limits.

        Raises:
            RateLimitedError: Over a limit.
        """
        ...


class TenantLimits:
    """The use that every key makes of its limits, for one event loop.

    A bucket holds a minute's worth: a key that was quiet may use it at once, and then gets what refills. Tokens are
    charged when they are known, after the answer; so a key may overdraw once, and waits until its debt is paid.

    Only keys that use something are held: one with nothing running and full buckets is forgotten, and so is a
    revoked one once its requests have ended and its buckets would be full again.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usages: dict[str, _Usage] = {}
        self._swept_at_s = clock()

    def __len__(self) -> int:
        """Keys held now."""
        return len(self._usages)

    async def take(self, key: KeyRecord) -> Share:
        """`lease`, for those who may have to wait for another process's answer. Raises as it does."""
        return self.lease(key)

    def lease(self, key: KeyRecord) -> "TenantLease":
        """Take a request's place within the key's limits, as they are in `key`; a refused one takes nothing.

        Raises:
            RateLimitedError: Over a limit; after `retry_after_s` no limit of now stands in the way.
        """
        now_s = self._clock()
        self._sweep(now_s)
        usage = self._usage(key, now_s)
        usage.refill(key, now_s)
        refusal = max(usage.refusals(), default=None)
        if refusal is not None:
            retry_after_s, reason, limit = refusal
            raise RateLimitedError(
                f"Key {key.id} of {key.tenant!r} exceeds its limit of {limit}. Retry in {retry_after_s:.1f} s.",
                retry_after_s,
                reason,
            )
        usage.num_running += 1
        usage.spent_requests += 1
        return TenantLease(self, key)

    def debit(self, key: KeyRecord, num_tokens: int) -> None:
        """Charge a finished request's prompt and completion tokens."""
        assert num_tokens >= 0
        now_s = self._clock()
        usage = self._usage(key, now_s)
        usage.refill(usage.key, now_s)
        usage.spent_tokens += num_tokens

    def release(self, key: KeyRecord) -> None:
        """Give a request's place back; `TenantLease` calls it, once."""
        self._usages[key.id].num_running -= 1

    def _usage(self, key: KeyRecord, now_s: float) -> "_Usage":
        return self._usages.setdefault(key.id, _Usage(key, now_s))

    def _sweep(self, now_s: float) -> None:
        if now_s - self._swept_at_s < _SWEEP_INTERVAL_S:
            return
        self._swept_at_s = now_s
        for usage in self._usages.values():
            usage.refill(usage.key, now_s)
        self._usages = {key_id: usage for key_id, usage in self._usages.items() if not usage.is_fresh}


class TenantLease:
    """A request that runs within its key's limits; `with`, or `release` where it outlives the block."""

    def __init__(self, limits: TenantLimits, key: KeyRecord) -> None:
        self._limits = limits
        self._key = key
        self._is_released = False

    def __enter__(self) -> "TenantLease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def debit(self, num_tokens: int) -> None:
        """Charge the request's prompt and completion tokens, once they are known; also after the release."""
        self._limits.debit(self._key, num_tokens)

    def release(self) -> None:
        """Give the request's place back; only the first call counts."""
        if not self._is_released:
            self._is_released = True
            self._limits.release(self._key)


@dataclass
class _Usage:
    """What a key has used. `spent_*` drains with the limit's rate; 0 is a full bucket."""

    key: KeyRecord
    at_s: float
    num_running: int = 0
    spent_requests: float = 0.0
    spent_tokens: float = 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether this says no more than a new one would."""
        return self.num_running == 0 and self.spent_requests == 0 and self.spent_tokens == 0

    def refill(self, key: KeyRecord, now_s: float) -> None:
        """Let the time since the last call drain what was spent, at the rates of the key as it is now."""
        minutes = (now_s - self.at_s) / 60
        self.spent_requests = _drained(self.spent_requests, key.requests_per_minute, minutes)
        self.spent_tokens = _drained(self.spent_tokens, key.tokens_per_minute, minutes)
        self.key, self.at_s = key, now_s

    def refusals(self) -> Iterator[tuple[float, str, str]]:
        """Every limit that one more request would break: seconds until it would not, its name, and its words."""
        key = self.key
        if key.max_concurrency is not None and self.num_running >= key.max_concurrency:
            yield _CONCURRENCY_RETRY_S, "concurrency", f"{key.max_concurrency} concurrent requests"
        if (wait_s := _wait_s(self.spent_requests + 1, key.requests_per_minute)) > _SHORTEST_WAIT_S:
            yield wait_s, "requests", f"{key.requests_per_minute} requests per minute"
        if (wait_s := _wait_s(self.spent_tokens, key.tokens_per_minute)) > _SHORTEST_WAIT_S:
            yield wait_s, "tokens", f"{key.tokens_per_minute} tokens per minute"


def _drained(spent: float, per_minute: int | None, minutes: float) -> float:
    return 0.0 if per_minute is None else max(0.0, spent - per_minute * minutes)


def _wait_s(spent: float, per_minute: int | None) -> float:
    """Seconds until `spent` has drained to what the bucket holds."""
    return 0.0 if per_minute is None else (spent - per_minute) * 60 / per_minute
