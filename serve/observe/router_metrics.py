"""What routers in front of several servers read: which adapters are here, by the names that clients ask for.

Names, labels and values are those of the Gateway API Inference Extension (docs/proposals/003-model-server-protocol)
and of llm-d's plugin metric protocol, which vLLM follows; vLLM's own `vllm:lora_requests_info` says `medical@3` where
clients ask for `medical`, and adds a series for every combination of adapters that ever ran together.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from adapters.errors import AdapterError
from adapters.reference import DEFAULT_ALIAS, Target

_MAX_NAMES = 5
"""Of one version: its own, and of aliases that point to it."""

_WAITING = "vllm:num_requests_waiting"
_ENGINE = "0"
"""vLLM's number of the engine; there is one."""


@dataclass(frozen=True)
class PlacedAdapter:
    """A version in the engine's memory."""

    target: Target
    is_pinned: bool


@dataclass(frozen=True)
class AdapterPlaces:
    """What the parts of a server know of its adapters, asked at each scrape.

    Attributes:
        placed: Versions in the engine's memory, least recently used first.
        running: Requests that hold places, by version as `medical@3`; None is the base.
        waiting: Requests in the admission queue, likewise.
        aliases: The version of each alias of an adapter.
    """

    placed: Callable[[], Iterable[PlacedAdapter]]
    running: Callable[[], Mapping[str | None, int]]
    waiting: Callable[[], Mapping[str | None, int]]
    aliases: Callable[[str], Mapping[str, int]]


class RouterMetrics(Collector):
    """Makes its series anew at each scrape, so that there are never more than adapters in memory have names.

    Args:
        max_loras: Slots of the engine.
    """

    def __init__(self, base_name: str, max_loras: int, places: AdapterPlaces) -> None:
        self._labels = [base_name, _ENGINE]
        self._max_loras = max_loras
        self._places = places

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registration does not call `collect`

    def collect(self) -> Iterator[Metric]:
        running, waiting = _versions(self._places.running()), _versions(self._places.waiting())
        placed = list(self._places.placed())
        in_slots = self._in_slots(placed, running)
        yield self._loaded(placed, in_slots)
        yield self._gauge("num_gpu_loaded_lora_adapters", "Adapters that occupy a slot of the engine.", len(in_slots))
        yield self._gauge("num_cpu_loaded_lora_adapters", "Adapters in the engine's memory.", len(placed))
        yield self._gauge("max_gpu_lora_adapters", "Adapter slots of the engine (max_loras).", self._max_loras)
        yield self._requests_info(running, waiting)

    def _in_slots(self, placed: list[PlacedAdapter], running: set[str]) -> set[Target]:
        """Pinned, then running, then the last used ones, as many as there are slots: what vLLM's own LRU keeps."""
        last_used_first = placed[::-1]
        ordered = sorted(
            last_used_first, key=lambda adapter: (not adapter.is_pinned, str(adapter.target) not in running)
        )
        return {adapter.target for adapter in ordered[: self._max_loras]}

    def _loaded(self, placed: list[PlacedAdapter], in_slots: set[Target]) -> Metric:
        family = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "1 for each name of an adapter in the engine's memory; level gpu: it occupies a slot.",
            labels=["model_name", "engine", "adapter_name", "level", "pinned"],
        )
        for adapter in placed:
            level, pinned = "gpu" if adapter.target in in_slots else "cpu", str(adapter.is_pinned).lower()
            for name in self._names(adapter.target):
                family.add_metric([*self._labels, name, level, pinned], 1)
        return family

    def _requests_info(self, running: set[str], waiting: set[str]) -> Metric:
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Time of this answer, with the adapters that have requests, by every name of each.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        named = [", ".join(sorted(name for version in each for name in self._names_of(version)))
                 for each in (running, waiting)]  # fmt: skip
        family.add_metric([str(self._max_loras), *named], time.time())
        return family

    def _names_of(self, version: str) -> list[str]:
        name, _, number = version.partition("@")
        return self._names(Target(name, int(number)))

    def _names(self, target: Target) -> list[str]:
        """What clients may ask for to get this version now: `medical@3`, `medical`, `medical@canary`."""
        try:
            of_name = self._places.aliases(target.name)
        except AdapterError:  # its history is being repaired, or is gone
            of_name = {}
        aliases = [alias for alias, version in of_name.items() if version == target.version]
        named = [target.name if alias == DEFAULT_ALIAS else f"{target.name}@{alias}" for alias in aliases]
        return [str(target), *sorted(named)[: _MAX_NAMES - 1]]

    def _gauge(self, name: str, text: str, value: int) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
        family.add_metric(self._labels, value)
        return family


class WithAdmissionQueue:
    """vLLM's metrics, whose number of waiting requests counts those of the admission queue too: the engine gets no more
    than it runs, so that a router would take a full server for an idle one.
    """

    def __init__(self, vllm: CollectorRegistry, num_waiting: Callable[[], int]) -> None:
        self._vllm = vllm
        self._num_waiting = num_waiting

    def collect(self) -> Iterator[Metric]:
        for family in self._vllm.collect():
            if family.name == _WAITING:
                family.samples = [
                    sample._replace(value=sample.value + self._num_waiting()) for sample in family.samples
                ]
            yield family


def _versions(counts: Mapping[str | None, int]) -> set[str]:
    return {name for name, count in counts.items() if name is not None and count}
