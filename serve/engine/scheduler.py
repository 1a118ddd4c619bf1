"""vLLM's scheduler with our rules for each step: given to vLLM by name (`--scheduler-cls`), nothing is replaced.

Adapters take turns in the slots (slots.py), background requests give way to clients (make_way.py), a request that is
not finite (finite.py) or whose grammar costs too much (masks.py) is ended, and log-probabilities that only the observer
reads are withheld (withheld.py), in this order.
"""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from serve.engine.finite import NOT_FINITE, withdraw_not_finite
from serve.engine.make_way import BackgroundShare, schedule_with_way
from serve.engine.masks import GRAMMAR_TOO_COSTLY, withdraw_costly
from serve.engine.slots import HeldSlots, rest, turns_of
from serve.engine.withheld import Withheld

OVERRIDDEN = (
    "schedule",
    "_handle_blocked_waiting_request",
    "add_request",
    "finish_requests",
    "update_from_output",
)
"""Methods of vLLM's `Scheduler`; the table of patches has the source that each was written for."""

_Base: Any = object


class StepRules(_Base):  # type: ignore[misc] # vLLM's scheduler is the next class
    """What is done before and after a step of vLLM's."""

    withholds = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turns = turns_of(self.lora_config)
        self._withheld = Withheld()
        self._background = BackgroundShare()
        self._held = HeldSlots(self.lora_config.max_loras) if self.lora_config and not self._turns else None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if self._turns:
            rest(self, self._turns)
        if self._held:
            self._held.begin_step(self.running)
        stock, can_start = super().schedule, self._held.has_room if self._held else None
        return schedule_with_way(self, self._background, lambda: stock(*args, **kwargs), can_start)

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Whether a waiting request may start in this step."""
        is_ready: bool = super()._handle_blocked_waiting_request(request)
        return is_ready and (self._held is None or self._held.take(request))

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        if self.withholds:
            self._withheld.add(request)

    def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Args: request_ids: One, several, or None for all."""
        ids = (request_ids,) if isinstance(request_ids, str) else request_ids
        ids = None if ids is None else tuple(ids)
        self._withheld.drop(ids)
        return super().finish_requests(ids, *args, **kwargs)

    def update_from_output(self, scheduler_output: Any, model_output: Any) -> Any:
        reasons = dict.fromkeys(withdraw_not_finite(self, model_output), NOT_FINITE)
        reasons |= dict.fromkeys(withdraw_costly(self, model_output), GRAMMAR_TOO_COSTLY)
        is_withheld = self._withheld.wrap(model_output)
        found = super().update_from_output(scheduler_output, model_output)
        if reasons:
            _give_reasons(found, reasons)
        if is_withheld:
            self._withheld.hold_back(found)
        return found


class LorikeetScheduler(StepRules, Scheduler):
    """On a CPU, where vLLM schedules a step when the one before has ended."""


class LorikeetAsyncScheduler(StepRules, AsyncScheduler):
    """On a GPU, where it schedules the next step meanwhile, and log-probabilities cost little beside a step."""

    withholds = False


def _give_reasons(found: Any, reasons: dict[str, str]) -> None:
    """Say why a request has ended, in the `stop_reason` of its last output."""
    for of_client in found.values():
        for output in of_client.outputs:
            if output.request_id in reasons and output.finish_reason is not None:
                output.stop_reason = reasons[output.request_id]
