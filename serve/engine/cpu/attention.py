"""vLLM's attention on a CPU, called without Python in between (serve/kernels/attention.cpp).

vLLM (0.32) enters Python twice a layer and step, to find out what the layer and the batch are; each time the caches
are full of the base's weights. For plain decoder layers that is told once a step here, and the compiled code calls one
operator a layer. All other layers stay vLLM's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from serve.engine.replace import Replacement, install

_NOT_OURS = -1

_layers: list[Any] = []
"""vLLM's `Attention` modules of this process that are called our way, by their number."""

_known_caches: list[torch.Tensor] = []
"""The layers' KV caches as the operator has them."""


def install_cpp_attention() -> None:
    """Replace vLLM's calls; done twice, it does no more. The operators must be loaded."""
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    _register_for_compilation()
    install(
        Replacement(Attention, "__init__", _init),
        Replacement(Attention, "forward", _forward),
        Replacement(CPUModelRunner, "_model_forward", _model_forward),
    )


@cache
def _register_for_compilation() -> None:
    torch.library.register_fake("lorikeet::attend", lambda query, key, value, output, layer: None)


def _init(stock: Any, layer: Any, *args: Any, **kwargs: Any) -> None:
    stock(layer, *args, **kwargs)
    layer.lorikeet_number = _NOT_OURS
    if _is_plain(layer):
        layer.lorikeet_number = len(_layers)
        _layers.append(layer)


def _is_plain(layer: Any) -> bool:
    """Whether the layer does nothing but write its keys and values, and read them with its queries."""
    from vllm.config import get_current_vllm_config
    from vllm.v1.attention.backend import AttentionType
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    impl, config = layer.impl, get_current_vllm_config()
    return (
        type(impl) is CPUAttentionBackendImpl
        and layer.attn_type == AttentionType.DECODER
        and layer.kv_sharing_target_layer_name is None
        and layer.query_quant is None
        and not layer.use_direct_call
        and not layer.use_mm_prefix
        and not impl.is_fp8_kv_cache
        and impl.alibi_slopes is None
        and impl.sinks is None
        and config.kv_transfer_config is None
        and config.speculative_config is None
    )


def _forward(
    stock: Any,
    layer: Any,
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    output_shape: Any = None,
    output_dtype: Any = None,
) -> torch.Tensor:
    is_usual = key is not None and value is not None and output_shape is None and output_dtype is None
    if layer.lorikeet_number == _NOT_OURS or not is_usual:
        return stock(layer, query, key, value, output_shape, output_dtype)  # type: ignore[no-any-return] # a Tensor
    output = torch.empty(query.shape[0], layer.num_heads * layer.head_size_v, dtype=query.dtype, device=query.device)
    torch.ops.lorikeet.attend(
        query.view(-1, layer.num_heads, layer.head_size),
        key.view(-1, layer.num_kv_heads, layer.head_size),  # type: ignore[union-attr] # is_usual
        value.view(-1, layer.num_kv_heads, layer.head_size_v),  # type: ignore[union-attr] # is_usual
        output.view(-1, layer.num_heads, layer.head_size_v),
        layer.lorikeet_number,
    )
    return output


def _model_forward(stock: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    from vllm.forward_context import get_forward_context

    with _step(get_forward_context().attn_metadata):
        return stock(runner, *args, **kwargs)


@contextmanager
def _step(metadata_of: Any) -> Iterator[None]:
    """Tell the operator what each layer sees; nothing in a run without requests, as when vLLM warms up.

    Args:
        metadata_of: Mapping of a layer's name to vLLM's `CPUAttentionMetadata`, which a KV-cache group shares.
    """
    if metadata_of is None:
        yield
        return
    _tell_of_layers()
    seen = [metadata_of.get(layer.layer_name) for layer in _layers]  # None: a layer of another model of this process
    found = list({id(batch): batch for batch in seen if batch is not None}.values())
    number_of = {id(batch): number for number, batch in enumerate(found)}
    torch.ops.lorikeet.begin_attention(
        [number_of.get(id(batch), _NOT_OURS) for batch in seen],
        [batch.query_start_loc for batch in found],
        [batch.seq_lens for batch in found],
        [batch.block_table for batch in found],
        [batch.slot_mapping[: batch.num_actual_tokens] for batch in found],
        [batch.scheduler_metadata for batch in found],
        [batch.num_actual_tokens for batch in found],
        [batch.causal for batch in found],
    )
    try:
        yield
    finally:
        torch.ops.lorikeet.end_attention()


def _tell_of_layers() -> None:
    """Again where vLLM has made new KV caches."""
    caches = [layer.kv_cache for layer in _layers]
    if list(map(id, caches)) == list(map(id, _known_caches)):
        return
    # (blocks, heads, tokens, keys and values) to keys and values apart, as vLLM's CPUAttentionBackendImpl does it.
    parts = [cache.view(*cache.shape[:2], 2 * cache.shape[2], -1).chunk(2, dim=2) for cache in caches]
    torch.ops.lorikeet.set_attention_layers(
        [keys for keys, _ in parts],
        [values for _, values in parts],
        [layer.impl.scale for layer in _layers],
        [layer.impl.sliding_window for layer in _layers],
        [float(layer.impl.logits_soft_cap) for layer in _layers],
        [layer.isa for layer in _layers],
        [layer.impl.kv_cache_dtype for layer in _layers],
    )
    _known_caches[:] = caches
