"""The base's linear layers on a CPU, where vLLM (0.32) is slow, or cannot have LoRA on them.

Without AVX-512 oneDNN has no product of bfloat16 matrices, so vLLM (model_executor/layers/utils.py) falls back to
torch's, which is a fifth as fast as its product of float32 matrices. Here the weights are packed once, and multiplied
by serve/kernels/linear.cpp.

Without AMX oneDNN gets the weights of an int8 base, and nothing is left in their place (model_executor/kernels/linear/
scaled_mm/cpu.py): vLLM's LoRA layers then look for a weight's device in vain. Here an empty weight is left.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from serve.engine.replace import replace_method
from serve.kernels.build import load_kernels
from serve.kernels.packed import pack_b, padded_rank


def multiply_without_avx512() -> None:
    """Replace vLLM's choice of a product where it would be torch's; done twice, it does no more.

    The operators must be loaded.
    """
    if not is_wanted():
        return
    from vllm.model_executor.layers import utils

    register_for_compilation()
    replace_method(utils, "dispatch_cpu_unquantized_gemm", _choose)


@cache
def is_wanted() -> bool:
    """Whether this CPU has AVX2, and lacks what oneDNN multiplies bfloat16 with."""
    return not _has_bf16_products() and load_kernels() and torch.ops.lorikeet.has_own_linear()


def _has_bf16_products() -> bool:
    """Of oneDNN: with AVX-512."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def register_for_compilation() -> None:
    """Tell torch.compile what the operator returns."""
    torch.library.register_fake(
        "lorikeet::linear", lambda x, weight, outputs, bias: x.new_empty((*x.shape[:-1], outputs))
    )


def keep_int8_weights() -> None:
    """Leave an empty weight where oneDNN has it; done twice, it does no more."""
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel

    replace_method(CPUInt8ScaledMMLinearKernel, "process_weights_for_onednn", _process_weights_for_onednn)


def _process_weights_for_onednn(stock: Any, kernel: Any, layer: Any) -> None:
    stock(kernel, layer)
    name = kernel.layer_param_names[0]
    if getattr(layer, name) is None:
        setattr(layer, name, Parameter(torch.empty(0, dtype=torch.int8), requires_grad=False))


def _choose(stock: Any, layer: Any, remove_weight: bool) -> None:
    """Set `layer.cpu_linear`, which gets the input, the layer's weight and its bias."""
    weight = layer.weight
    if weight.is_meta or weight.ndim != 2 or weight.dtype != torch.bfloat16:
        stock(layer, remove_weight)
        return
    outputs, inputs = weight.shape
    if inputs != padded_rank(inputs):  # the operator wants what pack_b need not fill up
        stock(layer, remove_weight)
        return
    if remove_weight:
        layer.weight = Parameter(pack_b(weight.data), requires_grad=False)
        layer.cpu_linear = lambda x, packed, bias: torch.ops.lorikeet.linear(x, packed, outputs, bias)
    else:
        layer.cpu_linear = _Shared()


class _Shared:
    """Of a weight that is also read as it is, by the embedding: packed when it is multiplied for the first time."""

    def __init__(self) -> None:
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._packed is None:
            self._packed = pack_b(weight.data)
        product: Tensor = torch.ops.lorikeet.linear(x, self._packed, weight.shape[0], bias)
        return product
