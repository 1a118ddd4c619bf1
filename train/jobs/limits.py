"""Limits of a training beside serving: CPU cores, priority, memory, GPU memory and pauses."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from adapters.jobs.pressure import Pressure

_NICE = 19
_CALM_S = 5.0
"""Seconds of good latency before a training continues."""
_LOOK_EVERY_S = 1.0
_GPU_EVERY_S = 5.0

logger = logging.getLogger(__name__)


def cores_of(cpus: int | None) -> list[int]:
    """The cores that a training uses: the last ones of this process, as servers begin with the first.

    Args:
        cpus: How many; None: half of the cores, at least one.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return cores[-min(cpus or max(len(cores) // 2, 1), len(cores)) :]


def lower_priority(cpus: int | None) -> None:
    """Give this process the lowest priority and its own cores; call it before torch counts them."""
    cores = cores_of(cpus)
    os.nice(_NICE)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))


def used_bytes(process_id: int) -> int:
    """Resident memory of a process and its children; 0 if it has ended."""
    try:
        process = psutil.Process(process_id)
        return sum(int(one.memory_info().rss) for one in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


@dataclass
class YieldToClients:
    """Decides by clients' latency when a training must wait, and waits until the latency has recovered.

    Attributes:
        at: Wait from this multiple of the latency without training; None: never.
    """

    pressure: Pressure
    at: float | None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _looked_at: float = float("-inf")

    def is_needed(self) -> bool:
        now = self.clock()
        if self.at is None or now - self._looked_at < _LOOK_EVERY_S:
            return False
        self._looked_at = now
        return self.pressure.read() >= self.at

    def wait(self, is_stopped: Callable[[], bool]) -> None:
        assert self.at is not None
        calm_since = self.clock()
        while not is_stopped() and self.clock() - calm_since < _CALM_S:
            self.sleep(_LOOK_EVERY_S)
            if self.pressure.read() > (1 + self.at) / 2:
                calm_since = self.clock()


def wait_for_gpu(share: float | None, tell: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until enough GPU memory is free; returns at once without a GPU.

    Args:
        share: Share of the memory, 0 to 1; None: 0.9, as on a GPU that no server uses.
        tell: Called once if it has to wait.
    """
    import torch

    if not torch.cuda.is_available():
        return
    is_told = False
    while True:
        free, total = torch.cuda.mem_get_info()
        if free >= (share or 0.9) * total:
            return
        if not is_told:
            tell()
            is_told = True
        sleep(_GPU_EVERY_S)
