"""Log-probabilities of sampled tokens on a CPU, for a fraction of what vLLM spends on them.

The quality monitor asks for the log-probability of nearly every sampled token, and each step of the engine computes
them for its whole batch. vLLM (0.32, v1/sample/sampler.py) computes those of all tokens, and the sampled ones' ranks
by adding up booleans, which torch does one by one. Where only sampled tokens' are asked for, their logits and each
row's normaliser suffice (serve/kernels/logsumexp.cpp); ranks are counted where somebody may see them, and counted
faster.
"""

from dataclasses import replace
from typing import Any

import torch

from serve.engine.replace import replace_method
from serve.kernels.build import load_kernels


def sample_faster() -> None:
    """Replace vLLM's arithmetic; done twice, it does no more."""
    from vllm.v1.sample import sampler

    replaced: Any = sampler
    replaced.batched_count_greater_than = count_at_least
    replace_method(replaced.Sampler, "forward", _forward)


def _forward(stock: Any, self: Any, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
    if not _is_of_sampled_only(self, logits, sampling_metadata) or args or kwargs:
        return stock(self, logits, sampling_metadata, *args, **kwargs)
    output = stock(self, logits, replace(sampling_metadata, max_num_logprobs=None))
    output.logprobs_tensors = logprobs_of(logits, output.sampled_token_ids)
    return output


def count_at_least(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How many of each row are at least its value.

    Args:
        x: (B, N) float32; N below 2**24, up to which float32 counts exactly.
        values: (B, 1).

    Returns:
        (B,) int64.
    """
    return torch.ge(x, values, out=torch.empty_like(x)).sum(-1).to(torch.int64)


def logprobs_of(logits: torch.Tensor, token_ids: torch.Tensor) -> Any:
    """vLLM's `LogprobsTensors` of one token a row, without its rank (0), which no answer shows.

    Args:
        logits: (B, N), before anything that shapes the sampling.
        token_ids: (B, 1).
    """
    from vllm.v1.outputs import LogprobsTensors

    chosen = logits.gather(-1, token_ids.long()).float()
    is_fast = logits.dtype == torch.bfloat16 and load_kernels() and torch.ops.lorikeet.log_sum_exp_is_fast()
    normalisers = torch.ops.lorikeet.log_sum_exp(logits) if is_fast else _log_sum_exp(logits)
    ranks = torch.zeros(len(logits), dtype=torch.int64)
    return LogprobsTensors(token_ids.to(torch.int32), chosen - normalisers, ranks)


def _log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """(B, 1) float32 of (B, N); in place on one copy, for a second one would cost more than the arithmetic."""
    shifted = logits.to(torch.float32)
    highest = shifted.amax(-1, keepdim=True)
    return shifted.sub_(highest).exp_().sum(-1, keepdim=True).log_().add_(highest)


def _is_of_sampled_only(sampler: Any, logits: torch.Tensor, sampling_metadata: Any) -> bool:
    """Half-precision logits stay as they were: vLLM's sampling works on a float32 copy of them."""
    return (
        sampling_metadata.max_num_logprobs == 0
        and not sampling_metadata.logprob_token_ids
        and sampler.logprobs_mode == "raw_logprobs"
        and logits.dtype in (torch.bfloat16, torch.float16)
    )
