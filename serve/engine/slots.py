"""The engine's adapter slots where more adapters are asked for than there are: they take turns.

vLLM (0.32, v1/core/sched/scheduler.py) keeps an adapter's slot until nobody asks for it any more: a request for another
one waits for whole answers, and for ever where the busy ones stay busy. Here an adapter gives way after its turn: its
requests sit some steps out, as those do for which a step has no room.

And a pinned adapter lends its slot to a batch that needs all of them, where vLLM's worker (lora/model_manager.py) takes
a slot from an adapter of the same batch, and ends with an error.
"""

import os
import time
from collections.abc import Collection, Iterable
from typing import Any

from serve.engine.replace import replace_method

SLOT_TURN_VARIABLE = "LORIKEET_SLOT_TURN_S"
"""Set for the engine's processes by `ServeConfig.slot_turn_s`; without it adapters keep their slots, as in vLLM."""


class Turns:
    """Which adapters run. Time comes in as an argument, so the same calls give the same answers.

    Of adapters that wait, the one that has waited longest is next. It takes a free slot, or that of the adapter whose
    turn has lasted longest, if it is over.

    Args:
        num_slots: Adapters that run at a time.
        turn_s: Seconds for which an adapter may stay while others wait.
    """

    def __init__(self, num_slots: int, turn_s: float) -> None:
        self._num_slots = num_slots
        self._turn_s = turn_s
        # Since when, seconds; in order of time.
        self._served: dict[int, float] = {}
        self._waiting: dict[int, float] = {}

    def resting(self, running: Iterable[int], waiting: Iterable[int], now_s: float) -> Collection[int]:
        """The adapters that sit the next step out.

        Args:
            running: Adapters of the requests that run, most of all those that rested.
            waiting: Adapters of the requests that could be started, the first first.
            now_s: Monotonic seconds.
        """
        started = dict.fromkeys(running)
        wanted = started | dict.fromkeys(waiting)
        # Who got a slot and could not be started gives it back.
        self._served = {adapter: since_s for adapter, since_s in self._served.items() if adapter in started}
        self._waiting = {adapter: since_s for adapter, since_s in self._waiting.items() if adapter in wanted}
        for adapter in wanted:
            if adapter not in self._served:
                self._waiting.setdefault(adapter, now_s)
        for adapter in tuple(self._waiting):
            if len(self._served) >= self._num_slots and not self._end_a_turn(now_s):
                break
            del self._waiting[adapter]
            self._served[adapter] = now_s
        return self._waiting.keys()

    def _end_a_turn(self, now_s: float) -> bool:
        adapter, since_s = next(iter(self._served.items()))
        if now_s - since_s < self._turn_s:
            return False
        del self._served[adapter]
        self._waiting[adapter] = now_s
        return True


def take_turns() -> None:
    """Let adapters take turns in vLLM's scheduler, where the variable says so; done twice, it does no more.

    Raises:
        ValueError: The variable is no number.
    """
    turn_s = float(os.environ.get(SLOT_TURN_VARIABLE) or 0)
    if not turn_s:
        return
    from vllm.v1.core.sched.scheduler import Scheduler

    def schedule(stock: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler.lora_config:
            _rest(scheduler, turn_s)
        return stock(scheduler, *args, **kwargs)

    replace_method(Scheduler, "schedule", schedule)


def lend_pinned_slots() -> None:
    """Let pinned adapters lend their slots; done twice, it does no more."""
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    replace_method(LRUCacheWorkerLoRAManager, "_apply_adapters", _apply_adapters)


def _rest(scheduler: Any, turn_s: float) -> None:
    """Keep the requests of adapters that rest from the step that is scheduled next."""
    turns = getattr(scheduler, "lorikeet_turns", None)
    if turns is None:
        turns = scheduler.lorikeet_turns = Turns(scheduler.lora_config.max_loras, turn_s)
    has_room = len(scheduler.running) < scheduler.max_num_active_reqs
    waiting = map(_adapter_of, scheduler.waiting if has_room else ())
    running = [_adapter_of(request) for request in scheduler.running]
    resting = turns.resting(filter(None, running), filter(None, waiting), time.monotonic())
    for request, adapter in zip(scheduler.running, running, strict=True):
        if adapter in resting:  # the scheduler counts its steps before it looks
            request.next_decode_eligible_step = max(request.next_decode_eligible_step, scheduler.current_step + 2)


def _adapter_of(request: Any) -> int:
    """vLLM's number of the request's adapter; 0: none."""
    return request.lora_request.lora_int_id if request.lora_request else 0


def _apply_adapters(stock: Any, manager: Any, lora_requests: Any) -> None:
    slots = manager._adapter_manager
    active, pinned = slots._active_adapters, slots._registered_adapters.pinned_items
    wanted = {request.lora_int_id for request in lora_requests if request}
    idle = [adapter for adapter in active.pinned_items if adapter not in wanted]
    num_missing = len(wanted) + len(idle) - slots.lora_slots
    for adapter in idle[: max(0, num_missing)]:
        active.pop(adapter)
    stock(manager, lora_requests)
    for adapter in wanted & pinned - active.pinned_items:
        active.pin(adapter)
