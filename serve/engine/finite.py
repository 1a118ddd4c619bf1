"""What one request computes that is not finite (NaN, infinity) reaches no other request.

vLLM (0.32) hands a request cache blocks that another one has filled, and its attention reads beyond a sequence's end:
a masked value counts 0 times, and 0 times NaN is NaN. Three changes, on CPUs and GPUs alike:

- A block is zeroed whenever a request gets it anew. vLLM can do that and does it for some models only. So what a
  request reads is what was written for its own tokens and its own adapter, or zero.
- The worker names the requests whose logits are not finite: of each step, for the sum of a row.
- The scheduler ends these requests with an error, and takes their blocks out of the prefix cache.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from serve.engine.replace import Replacement, install

NOT_FINITE = "lorikeet: logits are not finite"
"""The `stop_reason` of an answer that was ended for that; its `finish_reason` is `error`."""

_ALWAYS = property(lambda _: True)


def contain_not_finite() -> None:
    """Replace vLLM's methods; done twice, it does no more."""
    from vllm.platforms import current_platform
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.worker import gpu_model_runner

    install(
        Replacement(KVCacheConfig, "needs_kv_cache_zeroing", _ALWAYS, is_value=True),
        Replacement(gpu_model_runner, "count_nans_per_row", not_finite_rows, is_value=True),
    )
    if current_platform.is_cpu():
        _contain_on_cpu()
    else:
        from vllm.v1.worker.gpu.sample import sampler  # of vLLM's second model runner

        install(Replacement(sampler, "get_num_nans", not_finite_rows, is_value=True))


def _contain_on_cpu() -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    install(
        Replacement(CPUModelRunner, "_get_nans_in_logits", _get_nans_in_logits),
        Replacement(CPUModelRunner, "_zero_block_ids", _zero_block_ids),
        Replacement(CPUModelRunner, "_init_kv_zero_meta", _prepare_no_kernel),
    )


def _prepare_no_kernel(stock: Any, runner: Any) -> None:
    """vLLM's zeroes blocks on a GPU."""


def not_finite_rows(logits: Tensor) -> Tensor:
    """1 for each row with NaN or +infinity, else 0; -infinity is what a grammar's mask writes.

    Args:
        logits: (B, N).

    Returns:
        (B,) int32.
    """
    return (~(logits.sum(-1) < math.inf)).to(torch.int32)


def _get_nans_in_logits(stock: Any, runner: Any, logits: Tensor | None) -> dict[str, int]:
    """By request, and only those with some: vLLM would send a count of each."""
    if logits is None:
        return {}
    rows = not_finite_rows(logits).tolist()
    if not any(rows):
        return {}
    requests = runner.input_batch.req_id_to_index
    return {request_id: 1 for request_id, row in requests.items() if row < len(rows) and rows[row]}


def _zero_block_ids(stock: Any, runner: Any, block_ids: list[int]) -> None:
    """As vLLM's own, but of every kind of attention: it leaves sliding windows out."""
    zero_blocks(_caches(runner), block_ids, runner.kv_cache_config.num_blocks)


def _caches(runner: Any) -> Iterator[Tensor]:
    layers = runner.compilation_config.static_forward_context
    seen: set[int] = set()
    for group in runner.kv_cache_config.kv_cache_groups:
        for name in group.layer_names:
            cache = layers[name].kv_cache if name in layers else None
            if isinstance(cache, Tensor) and cache.numel() and cache.data_ptr() not in seen:
                seen.add(cache.data_ptr())
                yield cache


def zero_blocks(caches: Iterable[Tensor], block_ids: Sequence[int], num_blocks: int) -> None:
    """Zero blocks of every cache.

    Args:
        caches: (num_blocks times what a block has of rows, ...) each.
    """
    runs = list(_runs(sorted(block_ids)))
    for cache in caches:
        rows = cache.shape[0] // num_blocks
        for first, end in runs:
            cache[first * rows : end * rows].zero_()


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and end of each run of successive numbers."""
    breaks = [0, *(place for place, (a, b) in enumerate(pairwise(numbers), 1) if b > a + 1), len(numbers)]
    return ((numbers[first], numbers[end - 1] + 1) for first, end in pairwise(breaks) if end > first)


def withdraw_not_finite(scheduler: Any, model_output: Any) -> set[str]:
    """The requests of a step that are not finite: vLLM's scheduler will end them with an error."""
    broken = {each for each in _not_finite(model_output) if each in scheduler.requests}
    for request_id in broken:
        _withdraw(scheduler, model_output, request_id)
    return broken


def _not_finite(model_output: Any) -> set[str]:
    """The requests of a step whose logits are not finite, or the log-probabilities of whose prompts are not."""
    counts, prompts = model_output.num_nans_in_logits, model_output.prompt_logprobs_dict
    found = {request_id for request_id, count in counts.items() if count} if counts else set()
    if prompts:
        found |= {
            request_id for request_id, lists in prompts.items() if lists is not None and lists.logprobs.isnan().any()
        }
    return found


def _withdraw(scheduler: Any, model_output: Any, request_id: str) -> None:
    """Take back what a step computed for a request, and have vLLM end it with an error."""
    if model_output.sampled_token_ids:
        model_output.sampled_token_ids[model_output.req_id_to_index[request_id]] = []
    model_output.prompt_logprobs_dict.pop(request_id, None)
    manager = scheduler.kv_cache_manager
    manager.evict_blocks({block_id for group in manager.get_block_ids(request_id) for block_id in group})
    # vLLM's own list of requests that cannot go on; it is worked off at the end of each step.
    scheduler.grammar_compile_error_reqs.add(request_id)
