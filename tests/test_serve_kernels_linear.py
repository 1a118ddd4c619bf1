"""The linear layers of CPUs without AVX-512 against float64, and where vLLM's choice is replaced by them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.nn.functional import linear

from serve.engine import linear as replaced
from serve.kernels.build import load_kernels
from serve.kernels.packed import pack_b

BF16_STEP = 2.0**-8
"""Relative: a bfloat16 has eight bits."""


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if not (load_kernels() and torch.ops.lorikeet.has_own_linear()):
        pytest.skip("the operator cannot be compiled here, or this CPU has no AVX2")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.lorikeet.linear(x, pack_b(weight), len(weight), bias)
    return result


@given(st.integers(1, 40), st.integers(1, 18), st.integers(1, 100), st.booleans(), st.integers(0, 2**16))
@example(rows=300, eighths=72, outputs=192, has_bias=True, seed=1)  # several blocks of rows
def test_it_is_the_product_rounded_once(rows: int, eighths: int, outputs: int, has_bias: bool, seed: int) -> None:
    x, weight = numbers(rows, 8 * eighths, seed=seed), numbers(outputs, 8 * eighths, seed=seed + 1)
    bias = numbers(outputs, seed=seed + 2) if has_bias else None
    wanted = linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = linear(x.double().abs(), weight.double().abs())  # what rounding of the sums is relative to
    error = (product(x, weight, bias).double() - wanted).abs()
    assert (error <= wanted.abs() * BF16_STEP + size * 1e-6).all()


def test_leading_dimensions_and_strides_are_kept() -> None:
    x, weight = numbers(6, 5, 32).transpose(0, 1), numbers(24, 32)
    assert torch.equal(product(x, weight), product(x.reshape(30, 32), weight).view(5, 6, 24))
    assert product(x[:0], weight).shape == (0, 6, 24)


def test_the_number_of_threads_changes_nothing() -> None:
    x, weight, before = numbers(33, 128), numbers(500, 128), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(product(x, weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


def test_what_is_no_number_stays_none() -> None:
    x, weight = numbers(2, 16), numbers(20, 16)
    weight[3, 5], weight[4] = float("nan"), 0
    weight[4, 0], x[:, 0] = float("inf"), 1
    result = product(x, weight)
    assert result[:, 3].isnan().all()
    assert (result[:, 4] == float("inf")).all()
    assert result[:, 5:].isfinite().all()


@pytest.mark.parametrize(
    ("x", "weight", "outputs", "told"),
    [
        (numbers(2, 16).float(), pack_b(numbers(8, 16)), 8, "x is bfloat16"),
        (numbers(2, 16), numbers(8, 16), 8, "what pack_b makes"),
        (numbers(2, 16), pack_b(numbers(8, 16)).float(), 8, "what pack_b makes"),
        (numbers(2, 14), pack_b(numbers(8, 16)), 8, "what pack_b makes"),
    ],
    ids=["float32 x", "not packed", "float32 weight", "other inputs"],
)
def test_what_does_not_fit_is_refused(x: torch.Tensor, weight: torch.Tensor, outputs: int, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        torch.ops.lorikeet.linear(x, weight, outputs, None)


def chosen(weight: torch.Tensor, *, remove_weight: bool) -> Any:
    """A layer as vLLM makes it, after the choice; `was_stock` where vLLM made it."""
    layer = SimpleNamespace(weight=Parameter(weight, requires_grad=False), was_stock=False)

    def stock(layer: Any, remove_weight: bool) -> None:
        layer.was_stock = True

    replaced._choose(stock, layer, remove_weight)
    return layer


@pytest.mark.parametrize("remove_weight", [True, False], ids=["layer", "shared with the embedding"])
def test_a_layer_of_bf16_weights_is_ours_from_then_on(remove_weight: bool) -> None:
    x, weight, bias = numbers(7, 64), numbers(50, 64), numbers(50)
    layer = chosen(weight.clone(), remove_weight=remove_weight)
    assert not layer.was_stock
    for _ in range(2):
        assert torch.equal(layer.cpu_linear(x, layer.weight, bias), product(x, weight, bias))
    if not remove_weight:
        assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize(
    "weight",
    [numbers(8, 16).float(), numbers(8, 12), numbers(8, 4, 2), torch.empty(8, 16, dtype=torch.bfloat16, device="meta")],
    ids=["float32", "twelve inputs", "three dimensions", "meta"],
)
def test_any_other_layer_is_left_to_vllm(weight: torch.Tensor) -> None:
    assert chosen(weight, remove_weight=True).was_stock


def test_it_can_be_compiled() -> None:
    replaced._register_for_compilation()
    weight = pack_b(numbers(50, 64))
    layer = torch.compile(
        lambda x: torch.ops.lorikeet.linear(x, weight, 50, None) + 1, backend="aot_eager", fullgraph=True
    )
    x = numbers(3, 64)
    assert torch.equal(layer(x), torch.ops.lorikeet.linear(x, weight, 50, None) + 1)


@pytest.mark.parametrize("has_products", [True, False])
def test_vllms_choice_is_replaced_only_where_onednn_has_no_product(
    monkeypatch: pytest.MonkeyPatch, has_products: bool
) -> None:
    from vllm.model_executor.layers import utils

    def stock(layer: Any, remove_weight: bool) -> None: ...

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", stock)
    monkeypatch.setattr(replaced, "_has_bf16_products", lambda: has_products)
    replaced.is_wanted.cache_clear()
    try:
        replaced.multiply_without_avx512()
        assert (utils.dispatch_cpu_unquantized_gemm is stock) is has_products
    finally:
        replaced.is_wanted.cache_clear()


def test_a_layer_whose_int8_weight_onednn_has_keeps_an_empty_one() -> None:
    """vLLM's kernel leaves nothing, and its LoRA layers ask the weight where it is."""
    from vllm.lora.layers.utils import _get_lora_device

    kernel = SimpleNamespace(layer_param_names=("weight", "weight_scale"))

    def stock(kernel: Any, layer: torch.nn.Module) -> None:
        layer.weight = None

    layer = torch.nn.Linear(8, 4)
    stock(kernel, layer)
    with pytest.raises(AttributeError):
        _get_lora_device(layer)
    replaced._process_weights_for_onednn(stock, kernel, layer)
    assert _get_lora_device(layer) == torch.device("cpu")
