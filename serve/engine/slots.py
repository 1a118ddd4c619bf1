"""The engine's adapter slots where more adapters are asked for than there are: they take turns.

vLLM (0.32, v1/core/sched/scheduler.py) keeps an adapter's slot until nobody asks for it any more: a request for another
one waits for whole answers, and for ever where the busy ones stay busy. Here an adapter gives way after its turn: its
requests sit some steps out, as those do for which a step has no room.

And a pinned adapter lends its slot to a batch that needs all of them, where vLLM's worker (lora/model_manager.py) takes
a slot from an adapter of the same batch, and ends with an error.
"""

import os
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from serve.engine.replace import Replacement, install

SLOT_TURN_VARIABLE = "LORIKEET_SLOT_TURN_S"
"""Set for the engine's processes by `ServeConfig.slot_turn_s`; without it adapters keep their slots, as in vLLM."""


class Turns:
    """Which adapters run. Time comes in as an argument, so the same calls give the same answers.

    Of adapters that wait, the one that has waited longest is next. It takes a free slot, or that of the adapter whose
    turn has been over longest. A turn of waiting makes up for one level of priority; for each level by which an adapter
    is more urgent than the one that waits, its turn is one turn longer.

    Args:
        num_slots: Adapters that run at a time.
        turn_s: Seconds for which an adapter may stay while others wait.
    """

    def __init__(self, num_slots: int, turn_s: float) -> None:
        self._num_slots = num_slots
        self._turn_s = turn_s
        # Since when, seconds.
        self._served: dict[int, float] = {}
        self._waiting: dict[int, float] = {}

    def resting(self, running: Mapping[int, int], waiting: Mapping[int, int], now_s: float) -> Collection[int]:
        """The adapters that sit the next step out.

        Args:
            running: Adapters of the requests that run, and of those that rested; with the priority of the most urgent
                one, lower first.
            waiting: Adapters of the requests that could be started, likewise.
            now_s: Monotonic seconds.
        """
        priorities = dict(running)
        for adapter, priority in waiting.items():
            priorities[adapter] = min(priority, priorities.get(adapter, priority))
        # Who got a slot and could not be started gives it back.
        self._served = {adapter: since_s for adapter, since_s in self._served.items() if adapter in running}
        waited = {adapter: self._waiting.get(adapter, now_s) for adapter in priorities if adapter not in self._served}
        self._waiting = dict(waited)
        for adapter in sorted(waited, key=lambda one: waited[one] + self._turn_s * priorities[one]):
            if len(self._served) >= self._num_slots:
                given_up = self._whose_turn_is_over(priorities[adapter], priorities, now_s)
                if given_up is None:
                    continue
                del self._served[given_up]
                self._waiting[given_up] = now_s
            del self._waiting[adapter]
            self._served[adapter] = now_s
        return self._waiting.keys()

    def _whose_turn_is_over(self, priority: int, priorities: Mapping[int, int], now_s: float) -> int | None:
        """The adapter that gives way to one of this priority."""

        def left_s(adapter: int) -> float:
            num_turns = 1 + max(0, priority - priorities[adapter])
            return self._served[adapter] + self._turn_s * num_turns - now_s

        first = min(self._served, key=left_s)
        return first if left_s(first) <= 0 else None


class HeldSlots:
    """The slots of an engine without turns: those of the requests that have started, also of such as sit a step out.

    vLLM counts the adapters of a step alone. While background requests sit steps out (make_way.py), it would start a
    request for one adapter more, and the step in which they go on would end the engine.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._adapters: set[int] = set()

    def begin_step(self, running: Iterable[Any]) -> None:
        self._adapters = {_adapter_of(request) for request in running} - {0}

    def has_room(self, request: Any) -> bool:
        adapter = _adapter_of(request)
        return not adapter or adapter in self._adapters or len(self._adapters) < self._num_slots

    def take(self, request: Any) -> bool:
        """Whether a waiting request may start in this step; its adapter then holds a slot."""
        has_room = self.has_room(request)
        if has_room:
            self._adapters |= {_adapter_of(request)} - {0}
        return has_room


def turns_of(lora_config: Any) -> Turns | None:
    """What an engine's scheduler asks; None where adapters take no turns.

    Raises:
        ValueError: The variable is no number.
    """
    turn_s = float(os.environ.get(SLOT_TURN_VARIABLE) or 0)
    return Turns(lora_config.max_loras, turn_s) if turn_s and lora_config else None


def lend_pinned_slots() -> None:
    """Let pinned adapters lend their slots; done twice, it does no more."""
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    install(Replacement(LRUCacheWorkerLoRAManager, "_apply_adapters", _apply_adapters))


def rest(scheduler: Any, turns: Turns) -> None:
    """Keep the requests of adapters that rest from the step that vLLM's scheduler schedules next."""
    has_room = len(scheduler.running) < scheduler.max_num_active_reqs
    running, waiting = _by_adapter(scheduler.running), _by_adapter(scheduler.waiting if has_room else ())
    resting = turns.resting(running, waiting, time.monotonic())
    if not resting:
        return
    for request in scheduler.running:
        if _adapter_of(request) in resting:  # the scheduler counts its steps before it looks
            request.next_decode_eligible_step = max(request.next_decode_eligible_step, scheduler.current_step + 2)


def _by_adapter(requests: Iterable[Any]) -> dict[int, int]:
    """The priority of the most urgent request of each adapter."""
    priorities: dict[int, int] = {}
    for request in requests:
        adapter = _adapter_of(request)
        if adapter:
            priorities[adapter] = min(request.priority, priorities.get(adapter, request.priority))
    return priorities


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
