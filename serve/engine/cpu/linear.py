"""The base's linear layers on a CPU: multiplied by what is fastest there, and with LoRA on all of them.

vLLM (0.32, model_executor/layers/utils.py) multiplies bfloat16 by oneDNN where that can, else by torch. Here each shape
of weights is measured once, when the first layer of that shape has its weights (linear_choice.py, beside this file).
From then on vLLM's own product, or kernels of serve/kernels/linear.cpp, serve all layers of that shape. Which one it
is, the operator reads from a table that torch.compile does not see: a start that chooses otherwise compiles
nothing anew.

Without AMX oneDNN gets the weights of an int8 base, and nothing is left in their place (model_executor/kernels/linear/
scaled_mm/cpu.py): vLLM's LoRA layers then look for a weight's device in vain. Here an empty weight is left.
"""

import os
from collections.abc import Callable
from functools import cache
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from serve.engine.cpu.linear_choice import (
    STOCK,
    UP_TO_ROWS,
    Choice,
    Product,
    choose,
    measure,
    num_samples,
    sample_outputs,
)
from serve.engine.replace import Replacement, install
from serve.kernels.build import load_kernels
from serve.kernels.packed import pack_b, padded_rank

CPU_LINEAR_VARIABLE = "LORIKEET_CPU_LINEAR"
"""`stock` leaves the products to vLLM: `lorikeet bench linear` compares both."""

Shape = tuple[int, int]
"""Outputs and inputs of a layer."""

Stock = Callable[[Any, bool], None]
"""vLLM's `dispatch_cpu_unquantized_gemm`: layer, and whether its weight may be removed."""

_VLLM = -1  # in place of a kernel's number


def choose_products() -> None:
    """Replace vLLM's choice of a product by a measured one; done twice, it does no more.

    The operators must be loaded.
    """
    if not can_choose():
        return
    from vllm.model_executor.layers import utils

    register_for_compilation()
    install(Replacement(utils, "dispatch_cpu_unquantized_gemm", _dispatch))


def _dispatch(stock: Stock, layer: Any, remove_weight: bool) -> None:
    PRODUCTS.install(stock, layer, remove_weight)


@cache
def can_choose() -> bool:
    """Whether this CPU executes one of our kernels, and nobody has turned the choice off."""
    is_off = os.environ.get(CPU_LINEAR_VARIABLE) == "stock"
    return not is_off and load_kernels() and bool(torch.ops.lorikeet.linear_kernels())


@cache
def register_for_compilation() -> None:
    """Tell torch.compile what the operators return."""

    def empty_product(x: Tensor, weight: Tensor, outputs: int, *_: object) -> Tensor:
        return x.new_empty((*x.shape[:-1], outputs))

    for name in ("linear", "linear_by"):
        torch.library.register_fake(f"lorikeet::{name}", empty_product)


def keep_int8_weights() -> None:
    """Leave an empty weight where oneDNN has it; done twice, it does no more."""
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel

    install(
        Replacement(CPUInt8ScaledMMLinearKernel, "process_weights_for_onednn", _process_weights_for_onednn),
    )


def _process_weights_for_onednn(stock: Any, kernel: Any, layer: Any) -> None:
    stock(kernel, layer)
    name = kernel.layer_param_names[0]
    if getattr(layer, name) is None:
        setattr(layer, name, Parameter(torch.empty(0, dtype=torch.int8), requires_grad=False))


class Products:
    """What was chosen in this process, by shape of weights."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._choices: dict[Shape, Choice] = {}
        self._measured_s = 0.0
        self.left_to_vllm: set[Shape] = set()
        """Multiplied by something of vLLM's that our operator cannot call: compiled code differs by them."""

    def __str__(self) -> str:
        """In one line; empty where nothing was measured."""
        shapes = "; ".join(f"{outputs}x{inputs}: {choice}" for (outputs, inputs), choice in self._choices.items())
        return shapes and f"{shapes} (measured in {self._measured_s:.1f} s)"

    def install(self, stock: Stock, layer: Any, remove_weight: bool) -> None:
        """Set `layer.cpu_linear`, which gets the input, the layer's weight and its bias."""
        weight: Tensor = layer.weight
        if not _can_multiply(weight):
            stock(layer, remove_weight)
            return
        choice, outputs, handler = self._choice(stock, weight), len(weight), None
        if choice.is_stock:
            stock(layer, remove_weight)
            handler = _onednn_handler(layer.cpu_linear)
            if handler is None:
                self.left_to_vllm.add(_shape(weight))
                return
        linear = _Linear(choice, handler)
        if remove_weight:
            linear.pack(weight)
            layer.weight = Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=False)
            layer.cpu_linear = lambda x, _, bias: torch.ops.lorikeet.linear(x, linear.table, outputs, bias)
        else:
            layer.cpu_linear = _Shared(linear)

    def _choice(self, stock: Stock, weight: Tensor) -> Choice:
        shape = _shape(weight)
        if shape not in self._choices:
            start = self._clock()
            self._choices[shape] = choose(_measure(stock, weight, self._clock))
            self._measured_s += self._clock() - start
        return self._choices[shape]


PRODUCTS = Products()


class _Linear:
    """What the operator reads of one layer, and what the addresses in it point into."""

    def __init__(self, choice: Choice, handler: Any) -> None:
        self._choice, self._handler = choice, handler
        self._packed: Tensor | None = None
        names = torch.ops.lorikeet.linear_kernels()
        numbers = [_VLLM if choice.is_stock else names.index(name) for name in choice.kernels]
        pairs = [entry for pair in zip(UP_TO_ROWS, numbers, strict=True) for entry in pair]
        address = 0 if handler is None else handler.handler_tensor.item()
        self.table = torch.tensor([0, address, *pairs])

    def pack(self, weight: Tensor) -> None:
        """Once, and only where one of our kernels reads it."""
        if self._packed is None and not self._choice.is_stock:
            self._packed = pack_b(weight.data)
            self.table[0] = self._packed.data_ptr()


class _Shared:
    """Of a weight that is also read as it is, by the embedding: packed when it is multiplied for the first time."""

    def __init__(self, linear: _Linear) -> None:
        self._linear = linear

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._linear.pack(weight)
        product: Tensor = torch.ops.lorikeet.linear(x, self._linear.table, weight.shape[0], bias)
        return product


def _can_multiply(weight: Tensor) -> bool:
    """The operator wants bfloat16, and inputs that pack_b need not fill up."""
    is_matrix = not weight.is_meta and weight.ndim == 2 and weight.dtype == torch.bfloat16
    return is_matrix and weight.shape[1] == padded_rank(weight.shape[1])


def _shape(weight: Tensor) -> Shape:
    return weight.shape[0], weight.shape[1]


def _onednn_handler(cpu_linear: Any) -> Any:
    """What vLLM's product calls oneDNN by; None where it does not."""
    captured = (cell.cell_contents for cell in getattr(cpu_linear, "__closure__", None) or ())
    return next((value for value in captured if hasattr(value, "handler_tensor")), None)


def _measure(stock: Stock, weight: Tensor, clock: Callable[[], float]) -> list[dict[str, float]]:
    """Seconds of vLLM's product and of our kernels, on copies of a part of the weight."""
    threads, inputs = torch.get_num_threads(), weight.shape[1]
    outputs = sample_outputs(len(weight), inputs, threads)
    part = weight.data[:outputs]
    layers = [
        SimpleNamespace(weight=Parameter(part.clone(), requires_grad=False))
        for _ in range(num_samples(part.nbytes, threads))
    ]
    packed = [pack_b(part) for _ in layers]
    for layer in layers:
        stock(layer, False)

    def by_vllm(x: Tensor, sample: int) -> None:
        layers[sample].cpu_linear(x, layers[sample].weight, None)

    def by_kernel(number: int) -> Product:
        return lambda x, sample: torch.ops.lorikeet.linear_by(x, packed[sample], outputs, None, number)

    kernels = {name: by_kernel(number) for number, name in enumerate(torch.ops.lorikeet.linear_kernels())}
    return measure({STOCK: by_vllm, **kernels}, inputs, len(layers), clock)
