"""The time of day for what is stored and counted by it, without the jumps that a machine's clock may make."""

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_JUMP_S = 60.0
_BELIEVED_AFTER_S = 86_400.0


def _elapsed_s() -> float:
    """Seconds that never jump; on Linux those in which the machine slept count, too."""
    boot: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class SteadyClock:
    """Seconds since the epoch. It follows the wall clock; a jump of more than a minute once it has lasted a day.

    So a clock that is wrong for an hour changes no day's budget and no retention, and one that was put right is
    followed in the end.

    Args:
        elapsed: Seconds that never jump.
    """

    def __init__(self, wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = _elapsed_s) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._offset_s = wall() - elapsed()
        self._jumped_at_s: float | None = None

    def __call__(self) -> float:
        with self._lock:
            elapsed_s = self._elapsed()
            offset_s = self._wall() - elapsed_s
            if abs(offset_s - self._offset_s) <= _JUMP_S:
                self._jumped_at_s, self._offset_s = None, offset_s
            elif self._jumped_at_s is None:
                self._jumped_at_s = elapsed_s
                logger.warning("The clock jumped by %.0f s; the jump is ignored for now.", offset_s - self._offset_s)
            elif elapsed_s - self._jumped_at_s > _BELIEVED_AFTER_S:
                logger.warning("The clock's jump by %.0f s is now accepted.", offset_s - self._offset_s)
                self._jumped_at_s, self._offset_s = None, offset_s
            return elapsed_s + self._offset_s


steady_time = SteadyClock()
"""This process's."""


def is_within(now_s: float, since_s: float, length_s: float) -> bool:
    """Whether `now_s` is less than `length_s` after `since_s`; not where a clock went back behind `since_s`."""
    return 0.0 <= now_s - since_s < length_s
