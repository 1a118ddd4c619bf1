"""Adapters take turns in the engine's slots, and pinned ones lend theirs to a batch that needs it."""

from collections import deque
from collections.abc import Iterable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.lora import worker_manager
from vllm.lora.model_manager import AdapterLRUCache

from serve.engine.scheduler import StepRules
from serve.engine.slots import SLOT_TURN_VARIABLE, Turns, lend_pinned_slots

TURN_S = 0.5
STEP_S = 0.1

asked_for = st.lists(st.tuples(st.frozensets(st.integers(1, 9), max_size=9), st.booleans()), min_size=1, max_size=60)


@given(st.integers(1, 4), asked_for)
def test_no_more_adapters_run_than_there_are_slots_and_none_rests_in_vain(
    num_slots: int, steps: list[tuple[frozenset[int], bool]]
) -> None:
    turns, running = Turns(num_slots, TURN_S), set[int]()
    for number, (wanted, has_room) in enumerate(steps):
        running &= wanted
        waiting = wanted - running if has_room else set()
        resting = set(turns.resting(alike(running), alike(waiting), number * STEP_S))
        running |= waiting - resting
        serving = running - resting
        assert len(serving) <= num_slots
        assert len(serving) == min(num_slots, len(wanted)) or not has_room
        assert resting <= wanted


@given(st.integers(1, 4), st.integers(1, 12))
def test_each_of_many_gets_its_turn_in_time_and_no_turn_is_cut_short(num_slots: int, num_adapters: int) -> None:
    turns, adapters = Turns(num_slots, TURN_S), set(range(num_adapters))
    running = set[int]()
    lengths: dict[int, list[int]] = {adapter: [] for adapter in adapters}
    last = dict.fromkeys(adapters, 0)
    for step in range(100):
        resting = set(turns.resting(alike(running), alike(adapters - running), step * STEP_S))
        running |= adapters - resting
        for adapter in adapters - resting:
            if last[adapter] == step - 1 and lengths[adapter]:
                lengths[adapter][-1] += 1
            else:
                lengths[adapter].append(1)
            assert step - last[adapter] <= -(-num_adapters // num_slots) * (TURN_S / STEP_S + 1)
            last[adapter] = step
    assert all(lengths.values())
    assert all(length * STEP_S >= TURN_S for of_one in lengths.values() for length in of_one[:-1])


def test_one_that_gets_a_slot_and_cannot_be_started_does_not_keep_it() -> None:
    turns = Turns(1, TURN_S)
    assert set(turns.resting({1: 0}, {}, 0.0)) == set()
    assert set(turns.resting({1: 0}, {2: 0}, 0.6)) == {1}
    assert set(turns.resting({1: 0}, {2: 0}, 0.7)) == {2}


@pytest.mark.parametrize(
    ("priority", "ends_s"),
    [
        pytest.param(0, 0.5, id="alike"),
        pytest.param(2, 1.5, id="two turns more for two levels"),
        pytest.param(-1, 0.5, id="no shorter for one more urgent"),
        pytest.param(1_000_000, None, id="not for a copy of a request"),
    ],
)
def test_the_turn_of_one_more_urgent_lasts_longer(priority: int, ends_s: float | None) -> None:
    turns = Turns(1, TURN_S)
    turns.resting({1: 0}, {}, 0.0)
    times = (step * STEP_S for step in range(100))
    ended_s = next((now_s for now_s in times if 1 in turns.resting({1: 0}, {2: priority}, now_s)), None)
    assert ended_s == pytest.approx(ends_s)


def test_one_of_low_priority_gets_its_turn_among_a_flood_of_more_urgent_ones() -> None:
    turns, running = Turns(1, TURN_S), dict[int, int]()
    served: list[int] = []
    for step in range(60):
        waiting = {99: 3} if 99 not in running else {}
        waiting |= {step // 2: 0}  # and each of them is answered within a second
        resting = set(turns.resting(running, waiting, step * STEP_S))
        running |= {adapter: priority for adapter, priority in waiting.items() if adapter not in resting}
        served += running.keys() - resting
        running = {adapter: priority for adapter, priority in running.items() if adapter > step // 2 - 5}
    assert served.count(99) * STEP_S >= TURN_S


def alike(adapters: Iterable[int]) -> dict[int, int]:
    return dict.fromkeys(adapters, 0)


def request(adapter: int) -> Any:
    lora_request = SimpleNamespace(lora_int_id=adapter) if adapter else None
    return SimpleNamespace(lora_request=lora_request, priority=0, next_decode_eligible_step=0)


class StockScheduler:
    """What of vLLM's scheduler says who runs: in each step those that are eligible, and who is new while slots last."""

    def __init__(self, num_slots: int, *adapters: int) -> None:
        self.lora_config = SimpleNamespace(max_loras=num_slots)
        self.max_num_active_reqs = 8
        self.current_step = 0
        self.running: list[Any] = []
        self.waiting = deque(map(request, adapters))

    def schedule(self) -> list[int]:
        self.current_step += 1
        scheduled = [r for r in self.running if self.current_step >= r.next_decode_eligible_step]
        for new in tuple(self.waiting):
            adapters = {_adapter(r) for r in scheduled} - {0}
            if _adapter(new) in adapters or len(adapters) < self.lora_config.max_loras or not _adapter(new):
                self.waiting.remove(new)
                self.running.append(new)
                scheduled.append(new)
        return [_adapter(r) for r in scheduled]


def _adapter(request: Any) -> int:
    return request.lora_request.lora_int_id if request.lora_request else 0


class Scheduler(StepRules, StockScheduler): ...


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> type[Scheduler]:
    ticks = count()
    monkeypatch.setattr("serve.engine.slots.time.monotonic", lambda: next(ticks) * STEP_S)
    return Scheduler


def test_requests_of_adapters_take_turns_and_those_of_the_base_always_run(
    scheduler: type[Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SLOT_TURN_VARIABLE, str(TURN_S))
    house = scheduler(1, 7, 7, 0, 8)
    steps = [house.schedule() for _ in range(20)]
    assert steps[:5] == [[7, 7, 0]] * 5
    assert steps[5] == [0, 8]
    assert [8 in step for step in steps] == ([False] * 5 + [True] * 5) * 2
    assert all(0 in step for step in steps)


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_vllms_own_order_stays(
    scheduler: type[Scheduler], monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv(SLOT_TURN_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(SLOT_TURN_VARIABLE, value)
    house = scheduler(1, 7, 8)
    assert [house.schedule() for _ in range(20)] == [[7]] * 20


class Manager:
    """vLLM's worker's manager with its real caches, `lora/worker_manager.py` and `lora/model_manager.py`."""

    def __init__(self, num_slots: int, num_in_memory: int) -> None:
        self.slots: list[int] = []
        self._adapter_manager = SimpleNamespace(
            lora_slots=num_slots,
            _active_adapters=AdapterLRUCache(num_slots, self.slots.remove),
            _registered_adapters=AdapterLRUCache(num_in_memory, lambda _: None),
        )

    def _apply_adapters(self, lora_requests: Any) -> None:
        for adapter in sorted(request.lora_int_id for request in lora_requests):
            self.activate(adapter)

    def activate(self, adapter: int, *, pin: bool = False) -> None:
        active, registered = self._adapter_manager._active_adapters, self._adapter_manager._registered_adapters
        registered[adapter] = None
        if adapter not in active:
            if len(active) >= self._adapter_manager.lora_slots:
                active.remove_oldest()
            active[adapter] = None
            self.slots.append(adapter)
        active.touch(adapter)
        if pin:
            registered.pin(adapter)
            active.pin(adapter)


@given(st.integers(1, 4), st.data())
def test_a_batch_has_all_its_adapters_in_slots_whatever_is_pinned(num_slots: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manager, "_apply_adapters", Manager._apply_adapters)  # put back afterwards
        patch.setattr(worker_manager, "LRUCacheWorkerLoRAManager", Manager)
        lend_pinned_slots()
        lend_pinned_slots()  # vLLM loads a plugin more than once
        manager = Manager(num_slots, 16)
        pinned = data.draw(st.sets(st.integers(1, 8), max_size=num_slots - 1))
        for adapter in pinned:
            manager.activate(adapter, pin=True)
        for batch in data.draw(st.lists(st.sets(st.integers(1, 8), max_size=num_slots), max_size=20)):
            before = pinned & set(manager.slots)
            manager._apply_adapters([SimpleNamespace(lora_int_id=adapter) for adapter in batch])
            assert batch <= set(manager.slots)
            assert len(manager.slots) <= num_slots
            num_lent = len(before - set(manager.slots))
            assert num_lent == max(0, len(batch | before) - num_slots)  # no more than it takes
        manager._apply_adapters([SimpleNamespace(lora_int_id=adapter) for adapter in pinned])
        assert manager._adapter_manager._active_adapters.pinned_items == pinned
