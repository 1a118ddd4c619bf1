"""Remember failed loads: permanently if the version itself is at fault, else for a while.

Only what the version itself is never changes: its files, its base, its answers. A full disk, a lack of memory or of
open files, a remote store that is away or a hiccup of the engine's worker says nothing about it.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from adapters.errors import (
    AdapterError,
    AdapterNotFoundError,
    BaseNotFoundError,
    InvalidBaseError,
    RemoteStoreError,
    StoreDiskError,
)
from adapters.reference import Target
from serve.background import Backoff
from serve.errors import (
    AdapterRefusedError,
    AdapterUnavailableError,
    NotFiniteError,
    ParityError,
    ServeError,
)

_PASSING_ERRNOS = frozenset(
    {
        errno.EACCES, errno.EAGAIN, errno.EBUSY, errno.ECONNREFUSED, errno.ECONNRESET, errno.EDQUOT, errno.EINTR,
        errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EPIPE, errno.EROFS,
        errno.ESTALE, errno.ETIMEDOUT, errno.ETXTBSY,
    }
)  # fmt: skip
# The engine's worker tells the text of an error, and not its type.
_PASSING_WORDS = re.compile(
    "|".join(["out of memory", "timed out", "MemoryError", *map(re.escape, map(os.strerror, sorted(_PASSING_ERRNOS)))]),
    re.IGNORECASE,
)
_NOT_OF_THE_VERSION = (
    RemoteStoreError, StoreDiskError, BaseNotFoundError, InvalidBaseError, OSError, MemoryError,
)  # fmt: skip


@dataclass
class _Refusal:
    """`until_s` is infinite for what never changes."""

    error: ServeError | None = None
    until_s: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)


class Refusals:
    """The versions that could not be loaded, and when each may be tried again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[Target, _Refusal] = {}

    def check(self, target: Target) -> None:
        """Check that a load may be tried.

        Raises:
            AdapterRefusedError: It failed a check.
            AdapterUnavailableError: It failed for a reason that may pass, and is not tried again yet.
        """
        refusal = self._refused.get(target)
        if refusal is None or refusal.error is None:
            return
        left_s = refusal.until_s - self._clock()
        if left_s <= 0:
            return
        if refusal.error.retry_after_s is not None:
            refusal.error.retry_after_s = left_s
        raise refusal.error.with_traceback(None)  # or each request would make its traceback longer

    def add(self, target: Target, error: BaseException) -> ServeError:
        """Remember why a load failed; returns the error for its requests."""
        refusal = self._refused.setdefault(target, _Refusal())
        if is_lasting(error):
            text = str(error) if isinstance(error, NotFiniteError) else f"{str(target)!r} is refused: {error}"
            refusal.error, refusal.until_s = AdapterRefusedError(text), float("inf")
        elif isinstance(error, (AdapterRefusedError, AdapterNotFoundError)) and not _is_passing(error):
            # The engine's worker said no, and nobody can tell whether it always will.
            refusal.backoff = Backoff(2.0, 600.0, refusal.backoff.num_failures)
            refusal.error = AdapterRefusedError(f"{str(target)!r} is refused: {error}")
            refusal.until_s = self._clock() + refusal.backoff.next_s()
        else:
            # The first time another try may follow at once.
            pause_s = refusal.backoff.next_s() if refusal.error is not None else 0.0
            refusal.error = AdapterUnavailableError(
                f"{str(target)!r} cannot be loaded now: {_public_reason(error)}", max(1.0, pause_s)
            )
            refusal.until_s = self._clock() + pause_s
        return refusal.error

    def forget(self, target: Target) -> None:
        """It was loaded."""
        self._refused.pop(target, None)


def is_lasting(error: BaseException) -> bool:
    """Whether the reason is a property of the version, which never changes."""
    if isinstance(error, (ParityError, NotFiniteError)):
        return True
    return isinstance(error, AdapterError) and not isinstance(error, AdapterNotFoundError) and not _is_passing(error)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, _NOT_OF_THE_VERSION):
        return True
    if isinstance(error, AdapterRefusedError):
        return _PASSING_WORDS.search(str(error)) is not None
    return any(_is_passing_itself(cause) for cause in _causes(error))


def _is_passing_itself(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _PASSING_ERRNOS or isinstance(error, (ConnectionError, TimeoutError))
    return isinstance(error, MemoryError)


def _public_reason(error: BaseException) -> str:
    """The reason, without paths of this machine and without unexpected errors."""
    if isinstance(error, (AdapterError, ServeError)):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "internal server error; see the server's log"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What an error was raised from, and what that was."""
    seen: set[int] = set()
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
