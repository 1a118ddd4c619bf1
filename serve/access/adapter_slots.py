"""Adapter slots: which adapters are loaded for waiting and running requests."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

MAX_LOADS = 8
"""Maximum concurrent loads: files are read in parallel, the engine takes one adapter at a time."""


@dataclass
class _Slot:
    """`loaded_s` is None during the load; `num_admitted` counts sequences since the adapter got its slot."""

    tenant_id: str
    taken_s: float
    loaded_s: float | None = None
    num_running: int = 0
    num_admitted: int = 0


class AdapterSlots:
    """The adapters that hold a slot, and which of them must give it up. Time comes in as an argument.

    Args:
        max_adapters: Number of slots.
        max_sequences: Sequences of a batch.
        age_s: Minimum time that an adapter without running requests keeps its slot, seconds.
    """

    def __init__(self, max_adapters: int, max_sequences: int, age_s: float) -> None:
        assert max_adapters >= 1
        self._max_adapters = max_adapters
        self._max_sequences = max_sequences
        self._age_s = age_s
        self._share = max(1, max_sequences // max_adapters)
        # In the order in which the adapters got their slots.
        self._slots: dict[str, _Slot] = {}

    def __contains__(self, adapter: object) -> bool:
        return adapter in self._slots

    @property
    def num_free(self) -> int:
        return self._max_adapters - len(self._slots)

    def is_loaded(self, adapter: str) -> bool:
        return adapter in self._slots and self._slots[adapter].loaded_s is not None

    def loading_by_tenant(self) -> Counter[str]:
        return Counter(slot.tenant_id for slot in self._slots.values() if slot.loaded_s is None)

    @property
    def names(self) -> Collection[str]:
        return self._slots.keys()

    def take(self, adapter: str, tenant_id: str, now_s: float) -> None:
        """Give an adapter a slot, before its load; the tenant is the one that requested it first."""
        self._slots[adapter] = _Slot(tenant_id, now_s)

    def taken_s(self, adapter: str) -> float:
        """When it got its slot."""
        return self._slots[adapter].taken_s

    def loaded(self, adapter: str, now_s: float) -> None:
        self._slots[adapter].loaded_s = now_s

    def remove(self, adapter: str) -> None:
        del self._slots[adapter]

    def start(self, adapter: str, num_sequences: int) -> None:
        """A request starts running."""
        self._slots[adapter].num_running += 1
        self._slots[adapter].num_admitted += num_sequences

    def stop(self, adapter: str) -> None:
        """A request has ended."""
        self._slots[adapter].num_running -= 1

    def free_if_idle(self, adapter: str) -> None:
        """Free an adapter's slot if no request runs; a load in progress keeps it."""
        if self.is_loaded(adapter) and not self._slots[adapter].num_running:
            del self._slots[adapter]

    def make_room(self, closed: Collection[str]) -> None:
        """If no slot is free, free one without running requests, of an adapter that was served or must drain."""
        for adapter, slot in tuple(self._slots.items()):
            if self.num_free <= 0 and not slot.num_running and (slot.num_admitted or adapter in closed):
                del self._slots[adapter]

    def closed(self, num_overdue: int, num_passed: int, now_s: float) -> Collection[str]:
        """The adapters that admit no new requests until they have drained.

        Args:
            num_overdue: Adapters that have waited too long for a slot.
            num_passed: Sequences admitted ahead of them, of the request that was passed most.
        """
        if not num_overdue:
            return ()
        served = [name for name, slot in self._slots.items() if self._is_served(slot, now_s)]
        if num_passed >= self._max_sequences:
            return served
        served.sort(
            key=lambda name: self._slots[name].num_running > 0
        )  # a stable sort: then by how long each has held its slot
        return served[:num_overdue]

    def _is_served(self, slot: _Slot, now_s: float) -> bool:
        """Whether an adapter has had its share of a batch, or has been idle longer than `age_s`."""
        if slot.loaded_s is None:
            return False
        is_idle = slot.num_running == 0 and now_s - slot.loaded_s > self._age_s
        return is_idle or slot.num_admitted >= self._share
