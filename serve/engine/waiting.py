"""How vLLM's processes wait for each other where cores are few.

Its message queue (0.32, distributed/device_communicators/shm_broadcast.py) spins for a second after each message: while
the worker computes, the scheduler's process keeps a core busy with waiting, and with two cores that is every second
thread of the worker's. Here it sleeps on the queue's own notification instead.
"""

import time
from typing import Any

_AWAKE_S = 1.0
_LONGEST_NAP_MS = 5
"""While messages come often: what a notification that got lost would cost."""


def sleep_instead_of_spinning() -> None:
    """Replace the queue's waiting; done twice, it does no more."""
    from vllm.distributed.device_communicators import shm_broadcast

    queue_condition: Any = shm_broadcast.SpinCondition
    stock = queue_condition.wait
    if stock.__module__ == __name__:
        return

    def wait(condition: Any, timeout_ms: int | None = None) -> None:
        condition.busy_loop_s = 0
        is_awake = time.monotonic() < condition.last_read + _AWAKE_S
        if is_awake and (timeout_ms is None or timeout_ms > _LONGEST_NAP_MS):
            timeout_ms = _LONGEST_NAP_MS
        stock(condition, timeout_ms)

    queue_condition.wait = wait
