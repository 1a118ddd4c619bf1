"""An adapter's part on the output head, for the tokens of a prompt as for generated ones.

vLLM (0.32) maps what is multiplied by the head to adapters as it maps the sampled tokens, one row a request. For the
log-probabilities of a prompt it multiplies rows of the prompt's tokens, which then get the parts of the requests that
come first in the batch, or none. Here such rows are mapped by the adapter of each token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor

from serve.engine.replace import Replacement, install

_first_row: ContextVar[int | None] = ContextVar("first_row", default=None)
"""Of the rows that are multiplied by the head just now, in the batch's tokens; None where they are the sampled ones."""


def map_prompts_to_adapters() -> None:
    """Replace vLLM's methods; done twice, it does no more."""
    from vllm.lora.layers import LogitsProcessorWithLoRA
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    install(
        Replacement(LogitsProcessorWithLoRA, "_get_logits", _get_logits),
        Replacement(GPUModelRunner, "_get_prompt_logprobs_dict", _get_prompt_logprobs_dict),  # the CPU's runner, too
    )
    if not current_platform.is_cpu():
        from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker  # of vLLM's second model runner

        install(
            Replacement(PromptLogprobsWorker, "compute_prompt_logprobs", _of_second_runner),
            Replacement(PromptLogprobsWorker, "compute_prompt_token_id_logprobs", _of_second_runner_by_ids),
        )


def _get_prompt_logprobs_dict(stock: Any, runner: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not runner.num_prompt_logprobs:
        return stock(runner, hidden_states, *args, **kwargs)
    model = runner.model
    model.compute_logits = partial(_logits_of_tokens, model.compute_logits, hidden_states)
    try:
        return stock(runner, hidden_states, *args, **kwargs)
    finally:
        del model.compute_logits  # the class's own is seen again


def _of_second_runner(stock: Any, worker: Any, logits_of: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    return stock(worker, partial(_logits_of_tokens, logits_of, hidden_states), hidden_states, *args, **kwargs)


def _of_second_runner_by_ids(
    stock: Any, worker: Any, logits_of: Any, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    return _of_second_runner(stock, worker, logits_of, hidden_states, *args, **kwargs)


def _logits_of_tokens(logits_of: Any, hidden_states: Tensor, rows: Tensor) -> Any:
    """The logits of some of a batch's tokens.

    Args:
        hidden_states: (T, K) of the whole batch.
        rows: (R, K), successive ones of these; a view.
    """
    row_bytes = hidden_states.stride(0) * hidden_states.element_size()
    token = _first_row.set((rows.data_ptr() - hidden_states.data_ptr()) // row_bytes)
    try:
        return logits_of(rows)
    finally:
        _first_row.reset(token)


def _get_logits(stock: Any, layer: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    first = _first_row.get()
    if first is None:
        return stock(layer, hidden_states, *args, **kwargs)
    with _mapped_by_tokens(layer.punica_wrapper, first, len(hidden_states)):
        return stock(layer, hidden_states, *args, **kwargs)


@contextmanager
def _mapped_by_tokens(punica: Any, first: int, num_rows: int) -> Iterator[None]:
    sampled = punica.sampler_indices.clone()
    slots = punica.token_lora_indices[first : first + num_rows]
    assert len(slots) == num_rows, f"rows {first} to {first + num_rows} of {len(punica.token_lora_indices)} tokens"
    _map_rows(punica, slots)
    try:
        yield
    finally:
        _map_rows(punica, sampled)


def _map_rows(punica: Any, slots: Tensor) -> None:
    """Tell vLLM's LoRA arithmetic, or ours, the slot of each row that is multiplied by the head."""
    punica._sampler_indices[: len(slots)].copy_(slots)
    punica.indices_len[1] = len(slots)
    if hasattr(punica, "prompt_mapping_meta"):  # of the kernels on a GPU
        punica.prompt_mapping_meta.prepare_tensors(slots)
    if hasattr(punica, "forget_sampler_groups"):  # ours
        punica.forget_sampler_groups()
