"""Which product serves a layer's weights, by the number of rows: measured, as no list of CPUs says it.

oneDNN multiplies bfloat16 by what the CPU has, and our operator beats it on some kinds, for some shapes and numbers of
rows (docs/engine-cpu.md). Each multiplies a part of the weights alternately, and the shortest time counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STOCK = "vllm"
"""vLLM's own choice, whatever it is."""

ROWS = (1, 8, 32, 256)
"""Numbers of rows that are measured: decoding of one to many streams, and prefill."""

UP_TO_ROWS = (4, 16, 128, 1 << 62)
"""What is measured for ROWS holds up to so many rows."""

_LEAST_GAIN = 1.05
_MAX_LOSS = 0.95
_SAMPLED_BYTES_PER_THREAD = 8 << 20
"""Of weights that are multiplied one after the other: in a model no layer finds its weights in the second cache."""
_MAX_SAMPLED_BYTES = 64 << 20
_MULTIPLY_ADDS_PER_THREAD = 1 << 27
_FEWEST_OUTPUTS_PER_THREAD = 128
"""Or threads of our operator, which takes 64 outputs at once, would have nothing to do."""
_PASSES = 2
_MORE_PASSES = 2
"""Where no kernel was faster: that may have been other work on the machine."""
_MEASURED_S = 0.02
_MEASURED_TIMES = 3
_HOPELESS = 3.0
"""Times as long as the shortest: a kernel is not measured more often."""

Product = Callable[[Tensor, int], object]
"""Rows times the sample of this number."""


@dataclass(frozen=True)
class Choice:
    """What serves all layers of one shape.

    Attributes:
        kernels: For each of ROWS, the kernel that was fastest.
        gains: How many times as fast as STOCK it was.
    """

    is_stock: bool
    kernels: tuple[str, ...]
    gains: tuple[float, ...]

    def __str__(self) -> str:
        classes = zip(ROWS, self.kernels, self.gains, strict=True)
        gains = ", ".join(f"{rows} row{'s' * (rows > 1)} {kernel} {gain:.2f}x" for rows, kernel, gain in classes)
        return f"{gains}, left to vLLM" if self.is_stock else gains


def choose(timings: Sequence[Mapping[str, float]]) -> Choice:
    """Seconds by candidate, for each of ROWS, to a choice.

    All our kernels read one copy of the weights, and vLLM's product another one: so a shape is wholly ours or wholly
    vLLM's. It is ours where a kernel is clearly faster for some number of rows, and none is slower for any.
    """
    kernels = [min((name for name in seconds if name != STOCK), key=seconds.__getitem__) for seconds in timings]
    gains = [seconds[STOCK] / seconds[name] for seconds, name in zip(timings, kernels, strict=True)]
    is_stock = max(gains) < _LEAST_GAIN or min(gains) < _MAX_LOSS
    return Choice(is_stock, tuple(kernels), tuple(gains))


def sample_outputs(outputs: int, inputs: int, num_threads: int) -> int:
    """Of a layer's outputs, so many are measured: all of a large layer would take seconds."""
    threads = max(2, num_threads)
    most = _MULTIPLY_ADDS_PER_THREAD * threads // (max(ROWS) * inputs) // 16 * 16
    return min(outputs, max(_FEWEST_OUTPUTS_PER_THREAD * threads, most))


def num_samples(size_bytes: int, num_threads: int) -> int:
    """How many samples of this size are multiplied in turn."""
    return max(2, min(_MAX_SAMPLED_BYTES, _SAMPLED_BYTES_PER_THREAD * num_threads) // size_bytes)


def measure(
    products: Mapping[str, Product], inputs: int, num_samples: int, clock: Callable[[], float]
) -> list[dict[str, float]]:
    """Seconds of each product for each of ROWS: the shortest of some, taken alternately.

    In passes, for other work may keep the machine busy for a moment: what hid a kernel's speed is measured again.
    """
    x = torch.randn(max(ROWS), inputs, generator=torch.Generator().manual_seed(0)).bfloat16()
    shortest = [dict.fromkeys(products, float("inf")) for _ in ROWS]
    for number in range(_PASSES + _MORE_PASSES):
        for rows, seconds in zip(ROWS, shortest, strict=True):
            if number < _PASSES or min(seconds.values()) == seconds[STOCK]:
                _measure_rows(products, x[:rows], num_samples, clock, seconds)
    return shortest


def _measure_rows(
    products: Mapping[str, Product], x: Tensor, num_samples: int, clock: Callable[[], float], shortest: dict[str, float]
) -> None:
    for product in products.values():  # what is made at the first call is not measured
        product(x, 0)
    start, times = clock(), 0
    while times < _MEASURED_TIMES or clock() - start < _MEASURED_S:
        hopeless_s = _HOPELESS * min(shortest.values())
        for place, (name, product) in enumerate(products.items()):
            if name != STOCK and times >= _MEASURED_TIMES and shortest[name] > hopeless_s:
                continue
            # Not the sample that the one before has just brought into the caches.
            sample = (times + place * num_samples // len(products)) % num_samples
            before = clock()
            product(x, sample)
            shortest[name] = min(shortest[name], clock() - before)
        times += 1
