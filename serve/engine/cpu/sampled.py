"""Sampled tokens and their log-probabilities on a CPU, for a fraction of what vLLM spends on them.

vLLM (0.32, v1/sample/sampler.py) writes a step's logits as float32, draws a random number for each token of the
vocabulary, and for the log-probability of a sampled token, which the quality monitor wants of nearly every one,
computes those of all and their ranks. Where a batch asks for no more than temperatures, one operator
(serve/kernels/sampling.cpp) draws the tokens, with their log-probabilities. Else vLLM samples, and where only sampled
tokens' log-probabilities are asked for, their logits and each row's normaliser suffice; ranks are counted where
somebody may see them, and counted faster.
"""

from dataclasses import replace
from typing import Any

import torch

from serve.engine.replace import Replacement, install
from serve.kernels.build import load_kernels


def sample_faster() -> None:
    """Replace vLLM's arithmetic; done twice, it does no more."""
    from vllm.v1.sample import sampler

    install(
        Replacement(sampler, "batched_count_greater_than", count_at_least, is_value=True),
        Replacement(sampler.Sampler, "forward", _forward),
    )


def _forward(stock: Any, self: Any, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
    if args or kwargs or not _wants_at_most_sampled_logprobs(self, logits, sampling_metadata):
        return stock(self, logits, sampling_metadata, *args, **kwargs)
    if _wants_temperatures_only(sampling_metadata) and _is_fast(logits):
        return _drawn(logits, sampling_metadata)
    if sampling_metadata.max_num_logprobs is None:
        return stock(self, logits, sampling_metadata)
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
    chosen = logits.gather(-1, token_ids.long()).float()
    normalisers = torch.ops.lorikeet.log_sum_exp(logits) if _is_fast(logits) else _log_sum_exp(logits)
    return _without_ranks(token_ids.to(torch.int32), chosen - normalisers)


def _drawn(logits: torch.Tensor, sampling_metadata: Any) -> Any:
    """vLLM's `SamplerOutput`; the random numbers are of torch's default generator, as vLLM's own."""
    from vllm.v1.outputs import SamplerOutput

    rows, is_wanted = len(logits), sampling_metadata.max_num_logprobs is not None
    temperatures = torch.zeros(rows) if sampling_metadata.all_greedy else sampling_metadata.temperature
    uniforms = torch.rand(rows, dtype=torch.float64)
    sampled, logprobs = torch.ops.lorikeet.draw(logits, temperatures, uniforms, is_wanted)
    token_ids = sampled.to(torch.int32).unsqueeze(-1)
    return SamplerOutput(token_ids, _without_ranks(token_ids, logprobs) if is_wanted else None)


def _without_ranks(token_ids: torch.Tensor, logprobs: torch.Tensor) -> Any:
    from vllm.v1.outputs import LogprobsTensors

    return LogprobsTensors(token_ids, logprobs, torch.zeros(len(token_ids), dtype=torch.int64))


def _log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """(B, 1) float32 of (B, N); in place on one copy, for a second one would cost more than the arithmetic."""
    shifted = logits.to(torch.float32)
    highest = shifted.amax(-1, keepdim=True)
    return shifted.sub_(highest).exp_().sum(-1, keepdim=True).log_().add_(highest)


def _is_fast(logits: torch.Tensor) -> bool:
    return logits.dtype == torch.bfloat16 and load_kernels() and torch.ops.lorikeet.has_fast_sampling()


def _wants_at_most_sampled_logprobs(sampler: Any, logits: torch.Tensor, sampling_metadata: Any) -> bool:
    """Half-precision logits stay as they were: vLLM's sampling works on a float32 copy of them."""
    return (
        sampling_metadata.max_num_logprobs in (None, 0)
        and not sampling_metadata.logprob_token_ids
        and sampler.logprobs_mode == "raw_logprobs"
        and logits.dtype in (torch.bfloat16, torch.float16)
    )


def _wants_temperatures_only(sampling_metadata: Any) -> bool:
    """Whether nothing else shapes what is sampled, and no request brings a seed."""
    holder = sampling_metadata.thinking_budget_state_holder
    return (
        sampling_metadata.top_p is None
        and sampling_metadata.top_k is None
        and sampling_metadata.no_penalties
        and sampling_metadata.allowed_token_ids_mask is None
        and not sampling_metadata.bad_words_token_ids
        and not sampling_metadata.generators
        and (holder is None or not holder.has_tracked_requests())
        and not any(_is_at_work(processor) for processor in sampling_metadata.logitsprocs.all)
    )


def _is_at_work(processor: Any) -> bool:
    """Whether one of vLLM's logits processors has a request to change the logits of; one that it does not bring has."""
    for name in ("min_p_count", "biases", "min_toks"):  # of min_p, logit_bias and min_tokens
        if hasattr(processor, name):
            return bool(getattr(processor, name))
    return True
