"""The rank of a sampled token on a CPU: as vLLM counts it, in a quarter of the CPU time.

vLLM (0.32, v1/sample/ops/logprobs.py) adds up a matrix of booleans, which torch does one by one. The quality monitor
asks for log-probabilities of nearly every answer, and each step of the engine then counts ranks of its whole batch.
"""

from typing import Any

import torch


def count_ranks_faster() -> None:
    """Replace vLLM's counting; done twice, it does no more."""
    from vllm.v1.sample import sampler

    replaced: Any = sampler
    replaced.batched_count_greater_than = count_at_least


def count_at_least(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How many of each row are at least its value.

    Args:
        x: (B, N) float32; N below 2**24, up to which float32 counts exactly.
        values: (B, 1).

    Returns:
        (B,) int64.
    """
    return torch.ge(x, values, out=torch.empty_like(x)).sum(-1).to(torch.int64)
