"""A server's memory over a stretch of time."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from config.progress import called_every
from loadtest.bench.processes import tree_usage

_EVERY_S = 5.0


@dataclass(frozen=True)
class MemorySample:
    """Resident memory of all processes of a server; time in seconds since the first sample."""

    at_s: float
    resident_bytes: int


@dataclass(frozen=True)
class Trend:
    """Medians of the first and the last tenth of the samples, and the slope of the straight line through all."""

    start_bytes: float
    end_bytes: float
    slope_bytes_per_h: float


@contextmanager
def sampled_memory(pid: int, samples: list[MemorySample], every_s: float = _EVERY_S) -> Iterator[None]:
    """Take samples in a thread while the block runs, one at its start and one at its end among them."""
    start_s = time.monotonic()

    def take() -> None:
        samples.append(MemorySample(time.monotonic() - start_s, tree_usage(pid).resident_bytes))

    take()
    with called_every(every_s, take):
        yield
    take()


def trend_of(samples: Sequence[MemorySample]) -> Trend:
    """Raises ValueError where there are fewer than two samples."""
    if len(samples) < 2:
        raise ValueError(f"A trend needs more than {len(samples)} samples; sample for longer.")
    resident = [sample.resident_bytes for sample in samples]
    tenth = max(1, len(resident) // 10)
    slope = np.polyfit([sample.at_s for sample in samples], resident, 1)[0]
    return Trend(float(np.median(resident[:tenth])), float(np.median(resident[-tenth:])), 3600 * float(slope))
