"""The base's linear layers on a CPU: which of vLLM's choices are replaced, and by what."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from serve.engine import linear
from serve.kernels.build import load_kernels
from serve.kernels.packed import pack_b


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if not (load_kernels() and torch.ops.lorikeet.has_own_linear()):
        pytest.skip("the operator cannot be compiled here, or this CPU has no AVX2")


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()


def chosen(weight: torch.Tensor, *, remove_weight: bool) -> Any:
    """A layer as vLLM makes it, after the choice; `was_stock` where vLLM made it."""
    layer = SimpleNamespace(weight=Parameter(weight, requires_grad=False), was_stock=False)

    def stock(layer: Any, remove_weight: bool) -> None:
        layer.was_stock = True

    linear._choose(stock, layer, remove_weight)
    return layer


@pytest.mark.parametrize("remove_weight", [True, False], ids=["layer", "shared with the embedding"])
def test_a_layer_of_bf16_weights_is_ours_from_then_on(remove_weight: bool) -> None:
    x, weight, bias = numbers(7, 64), numbers(50, 64), numbers(50)
    layer = chosen(weight.clone(), remove_weight=remove_weight)
    assert not layer.was_stock
    for _ in range(2):
        assert torch.equal(
            layer.cpu_linear(x, layer.weight, bias), torch.ops.lorikeet.linear(x, pack_b(weight), 50, bias)
        )
    if not remove_weight:
        assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize(
    "weight",
    [numbers(8, 16).float(), numbers(8, 12), numbers(8, 4, 2), torch.empty(8, 16, dtype=torch.bfloat16, device="meta")],
    ids=["float32", "twelve inputs", "three dimensions", "meta"],
)
def test_any_other_layer_is_left_to_vllm(weight: torch.Tensor) -> None:
    assert chosen(weight, remove_weight=True).was_stock


@pytest.mark.parametrize("has_products", [True, False])
def test_vllms_choice_is_replaced_only_where_onednn_has_no_product(
    monkeypatch: pytest.MonkeyPatch, has_products: bool
) -> None:
    from vllm.model_executor.layers import utils

    def stock(layer: Any, remove_weight: bool) -> None: ...

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", stock)
    monkeypatch.setattr(linear, "_has_bf16_products", lambda: has_products)
    linear.is_wanted.cache_clear()
    try:
        linear.multiply_without_avx512()
        assert (utils.dispatch_cpu_unquantized_gemm is stock) is has_products
    finally:
        linear.is_wanted.cache_clear()


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
    linear._process_weights_for_onednn(stock, kernel, layer)
    assert _get_lora_device(layer) == torch.device("cpu")
