"""When an engine that should work makes no step."""

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

_LONGEST_LOOK_S = 1.0
"""A gap between two looks counts no more: this process itself may have been stopped for longer."""


class StepCounter(StatLoggerBase):
    """Counts the engine's steps: vLLM (0.32) tells its loggers of each, whether it gave tokens or not."""

    def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:
        self.num_steps = 0

    def record(self, *args: Any, **kwargs: Any) -> None:
        self.num_steps += 1

    def log_engine_initialized(self) -> None:
        """No action is needed."""


class StallWatch:
    """Adds up the time in which an engine had requests and made no step."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._stalled_s = 0.0
        self._num_steps = 0

    def is_stalled(self, num_steps: int, num_requests: int, elapsed_s: float) -> bool:
        """Whether that was too long, after `elapsed_s` since the last look."""
        if num_requests == 0 or num_steps != self._num_steps:
            self._stalled_s = 0.0
        else:
            self._stalled_s += min(elapsed_s, _LONGEST_LOOK_S)
        self._num_steps = num_steps
        return self._stalled_s > self._timeout_s
