"""How vLLM's processes wait for each other on a CPU: less often, and asleep where cores are few.

Its message queue (0.32, distributed/device_communicators/shm_broadcast.py) spins for a second after each message: while
the worker computes, the scheduler's process keeps a core busy with waiting, and with two cores that is every second
thread of the worker's. Here it sleeps on the queue's own notification instead.

And it asks the worker twice a step, for the model's run and for the tokens, so that a grammar's mask can be made in
between. Here a step without a grammar is asked for once.
"""

import time
from typing import Any

from serve.engine.replace import Replacement, install

_AWAKE_S = 1.0
_LONGEST_NAP_MS = 5
"""While messages come often: what a notification that got lost would cost."""


def sleep_instead_of_spinning() -> None:
    """Replace the queue's waiting; done twice, it does no more."""
    from vllm.distributed.device_communicators import shm_broadcast

    install(Replacement(shm_broadcast.SpinCondition, "wait", _wait))


def _wait(stock: Any, condition: Any, timeout_ms: int | None = None) -> None:
    condition.busy_loop_s = 0
    is_awake = time.monotonic() < condition.last_read + _AWAKE_S
    if is_awake and (timeout_ms is None or timeout_ms > _LONGEST_NAP_MS):
        timeout_ms = _LONGEST_NAP_MS
    stock(condition, timeout_ms)


def sample_at_once() -> None:
    """Let the worker answer a step with its tokens where nothing is to come in between; done twice, it does no more."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    install(Replacement(CPUWorker, "execute_model", _execute_model))


def _execute_model(stock: Any, worker: Any, scheduler_output: Any) -> Any:
    output = stock(worker, scheduler_output)
    config = worker.vllm_config
    if (
        output is not None
        or scheduler_output.has_structured_output_requests
        or config.scheduler_config.async_scheduling
        or config.parallel_config.pipeline_parallel_size > 1
    ):
        return output
    return worker.sample_tokens(None)
