"""Lower bound of a decode step's time: it reads all weights once, so memory bandwidth limits tokens per second."""

import math
import time
from pathlib import Path

import torch

from adapters.lint.peft_folder import WEIGHTS_FILE
from adapters.lint.tensors import read_headers
from loadtest.bench.results import BenchResult

_READ_BYTES = 1 << 30  # beyond every cache
_PASSES = 8
_BF16_BYTES = 2


def floor_results(
    base_bytes: int, adapter_bytes: int, bytes_per_s: float, num_threads: int, num_streams: int
) -> tuple[BenchResult, ...]:
    """Upper bounds by memory bandwidth: tokens per second of the base alone and with adapters in the batch.

    The KV cache and activations, which both sides read alike, are left out, so the best ratios are slightly better.

    Args:
        adapter_bytes: Of one adapter, as the engine holds it.
        num_streams: Tokens of one decode step.
    """

    def tokens_per_s(num_adapters: int) -> float:
        return num_streams * bytes_per_s / (base_bytes + num_adapters * adapter_bytes)

    read = BenchResult(name=f"floor: reading memory, {num_threads} threads", value=bytes_per_s / 1e9, unit="GB/s")
    step_ms = 1000 * base_bytes / bytes_per_s
    step = BenchResult(name=f"floor: a decode step's {base_bytes / 1e6:.0f} MB of the base", value=step_ms, unit="ms")
    ratios = (
        BenchResult(
            name=f"floor: {count} adapter{'s' if count > 1 else ''} of {adapter_bytes / 1e6:.1f} MB in a batch "
            "(baseline: the base)",
            value=tokens_per_s(count),
            unit="tok/s",
            baseline=tokens_per_s(0),
            ratio=tokens_per_s(count) / tokens_per_s(0),
        )
        for count in (1, 2, 8)
    )
    return read, step, *ratios


def read_bytes_per_s(num_threads: int, size_bytes: int = _READ_BYTES) -> float:
    """How fast this machine reads memory: the best of some passes of a sum, which copies nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        numbers = torch.ones(size_bytes // 4)
        return size_bytes / min(_seconds_of_a_pass(numbers) for _ in range(_PASSES))
    finally:
        torch.set_num_threads(before)


def base_bytes(folder: Path) -> int:
    """Of a prepared base's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def adapter_bytes(folder: Path) -> int:
    """Of an adapter's weights as an engine holds them, in bfloat16."""
    headers = read_headers(folder / WEIGHTS_FILE).values()
    return _BF16_BYTES * sum(math.prod(header.shape) for header in headers)


def _seconds_of_a_pass(numbers: torch.Tensor) -> float:
    start = time.perf_counter()
    numbers.sum()
    return time.perf_counter() - start
