"""The base's linear layers on a CPU without AVX-512, where nobody has a fast product of bfloat16 matrices.

oneDNN refuses, so vLLM (0.32, model_executor/layers/utils.py) falls back to torch's, which is a fifth as fast as its
product of float32 matrices. Here the weights are packed once, and multiplied by serve/kernels/linear.cpp.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from serve.engine.replace import replace_method
from serve.kernels.build import load_kernels
from serve.kernels.packed import pack_b

_INPUTS_STEP = 8  # what pack_b fills up to


def multiply_without_avx512() -> None:
    """Replace vLLM's choice of a product where it would be torch's; done twice, it does no more.

    The operators must be loaded.
    """
    if not is_wanted():
        return
    from vllm.model_executor.layers import utils

    _register_for_compilation()
    replace_method(utils, "dispatch_cpu_unquantized_gemm", _choose)


@cache
def is_wanted() -> bool:
    """Whether this CPU has AVX2, and lacks what oneDNN multiplies bfloat16 with."""
    return not _has_bf16_products() and load_kernels() and torch.ops.lorikeet.has_own_linear()


def _has_bf16_products() -> bool:
    """Of oneDNN: with AVX-512."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def _register_for_compilation() -> None:
    torch.library.register_fake(
        "lorikeet::linear", lambda x, weight, outputs, bias: x.new_empty((*x.shape[:-1], outputs))
    )


def _choose(stock: Any, layer: Any, remove_weight: bool) -> None:
    """Set `layer.cpu_linear`, which gets the input, the layer's weight and its bias."""
    weight = layer.weight
    if weight.is_meta or weight.ndim != 2 or weight.dtype != torch.bfloat16 or weight.shape[1] % _INPUTS_STEP:
        stock(layer, remove_weight)
        return
    outputs = weight.shape[0]
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
