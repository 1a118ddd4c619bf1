"""The base's linear layers on a CPU: what multiplies them after a choice, and which are left to vLLM."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.nn.functional import linear as torch_linear

from serve.engine.cpu import linear
from serve.engine.cpu.linear import Products
from serve.kernels.packed import pack_b
from tests.operators import require_avx2, require_operators


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    require_operators()
    require_avx2()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()


class Layer:
    """As much of vLLM's as a choice of a product needs."""

    cpu_linear: Any = None

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = Parameter(weight.clone(), requires_grad=False)


class Clock:
    """A millisecond passes each time it is read, and more where a product says so."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1e-3
        return self.now_s


class Stock:
    """vLLM's choice of a product; `extra_s` is what one takes longer than our kernels, which take a millisecond."""

    def __init__(self, extra_s: float, *, has_handler: bool = False) -> None:
        self.clock, self._extra_s, self._has_handler = Clock(), extra_s, has_handler
        self.layers: list[Any] = []

    def __call__(self, layer: Any, remove_weight: bool) -> None:
        self.layers.append(layer)
        weight, clock = layer.weight.data, self.clock
        handler = onednn_handler(weight) if self._has_handler else SimpleNamespace()

        def multiply(x: torch.Tensor, _: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            assert handler is not None
            clock.now_s += self._extra_s
            return torch_linear(x, weight, bias)

        layer.cpu_linear = multiply
        if remove_weight:
            layer.weight = Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=False)


def onednn_handler(weight: torch.Tensor) -> Any:
    from vllm import _custom_ops as ops

    try:
        return ops.create_onednn_mm(weight.t(), 32)
    except (AttributeError, RuntimeError):
        pytest.skip("oneDNN has no product of bfloat16 here")


SLOW, FAST = 1.0, -0.5e-3


def installed(stock: Stock, weight: torch.Tensor, *, remove_weight: bool = True) -> tuple[Layer, Products]:
    products = Products(stock.clock)
    layer = Layer(weight)
    products.install(stock, layer, remove_weight)
    return layer, products


def our_products(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> list[torch.Tensor]:
    """Of each kernel that this CPU can run."""
    packed, numbers = pack_b(weight), range(len(torch.ops.lorikeet.linear_kernels()))
    return [torch.ops.lorikeet.linear_by(x, packed, len(weight), bias, number) for number in numbers]


@pytest.mark.slow
@pytest.mark.parametrize("remove_weight", [True, False], ids=["layer", "shared with the embedding"])
def test_a_layer_is_ours_from_then_on_where_vllm_is_slower(remove_weight: bool) -> None:
    x, weight, bias, stock = numbers(7, 64), numbers(50, 64), numbers(50), Stock(SLOW)
    layer, products = installed(stock, weight, remove_weight=remove_weight)
    assert layer not in stock.layers
    for _ in range(2):
        served = layer.cpu_linear(x, layer.weight, bias)
        assert any(torch.equal(served, ours) for ours in our_products(x, weight, bias))
    assert layer.weight.numel() == (0 if remove_weight else weight.numel())
    assert "50x64: 1 row avx" in str(products)


@pytest.mark.parametrize("remove_weight", [True, False], ids=["layer", "shared with the embedding"])
def test_a_layer_of_onednn_stays_where_it_is_faster(remove_weight: bool) -> None:
    x, weight, stock = numbers(7, 64), numbers(48, 64), Stock(FAST, has_handler=True)
    layer, products = installed(stock, weight, remove_weight=remove_weight)
    assert layer in stock.layers
    wanted = torch_linear(x.double(), weight.double())
    torch.testing.assert_close(layer.cpu_linear(x, layer.weight, None).double(), wanted, atol=0.1, rtol=0.01)
    assert "left to vLLM" in str(products)
    assert not products.left_to_vllm


@pytest.mark.slow
def test_what_our_operator_cannot_call_stays_vllms_own() -> None:
    stock = Stock(FAST)
    layer, products = installed(stock, numbers(48, 64))
    assert layer in stock.layers
    assert layer.cpu_linear.__qualname__.startswith("Stock")
    assert products.left_to_vllm == {(48, 64)}


@pytest.mark.slow
def test_a_shape_is_measured_once() -> None:
    stock = Stock(SLOW)
    products = Products(stock.clock)
    products.install(stock, Layer(numbers(48, 64)), True)
    num_measured = len(stock.layers)
    products.install(stock, Layer(numbers(48, 64)), True)
    assert len(stock.layers) == num_measured
    products.install(stock, Layer(numbers(32, 64)), True)
    assert len(stock.layers) > num_measured
    assert str(products).count("256 rows") == 2


@pytest.mark.parametrize(
    "weight",
    [numbers(8, 16).float(), numbers(8, 12), numbers(8, 4, 2), torch.empty(8, 16, dtype=torch.bfloat16, device="meta")],
    ids=["float32", "twelve inputs", "three dimensions", "meta"],
)
def test_any_other_layer_is_left_to_vllm(weight: torch.Tensor) -> None:
    layers: list[Any] = []
    layer, products = SimpleNamespace(weight=Parameter(weight, requires_grad=False)), Products()
    products.install(lambda layer, _: layers.append(layer), layer, True)
    assert (layers, str(products)) == ([layer], "")


@pytest.mark.parametrize("setting", ["stock", None])
def test_vllms_choice_is_replaced_unless_it_is_turned_off(monkeypatch: pytest.MonkeyPatch, setting: str | None) -> None:
    from vllm.model_executor.layers import utils

    stock = utils.dispatch_cpu_unquantized_gemm
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", stock)  # put back afterwards
    if setting:
        monkeypatch.setenv(linear.CPU_LINEAR_VARIABLE, setting)
    else:
        monkeypatch.delenv(linear.CPU_LINEAR_VARIABLE, raising=False)
    linear.can_choose.cache_clear()
    try:
        linear.choose_products()
        assert (utils.dispatch_cpu_unquantized_gemm is stock) is (setting == "stock")
    finally:
        linear.can_choose.cache_clear()


def test_a_layer_whose_int8_weight_onednn_has_keeps_an_empty_one() -> None:
    """vLLM's kernel leaves nothing, and its LoRA layers ask the weight where it is."""
    from vllm.lora.layers.utils import _get_lora_device

    kernel = SimpleNamespace(layer_param_names=("weight", "weight_scale"))

    def stock(kernel: Any, layer: Any) -> None:
        layer.weight = None

    layer = torch.nn.Linear(8, 4)
    stock(kernel, layer)
    with pytest.raises(AttributeError):
        _get_lora_device(layer)
    linear._process_weights_for_onednn(stock, kernel, layer)
    assert _get_lora_device(layer) == torch.device("cpu")


@pytest.mark.slow
def test_compiled_code_asks_the_table_at_each_call() -> None:
    """What was compiled for one choice is loaded by a start that has made another one."""
    linear.register_for_compilation()
    stock = Stock(SLOW)
    layer, _ = installed(stock, numbers(48, 64))
    other, _ = installed(stock, numbers(48, 64) * 2)
    x = numbers(3, 64)
    compiled = torch.compile(
        lambda layer, x: layer.cpu_linear(x, layer.weight, None), backend="aot_eager", fullgraph=True
    )
    first = compiled(layer, x)
    assert torch.equal(first, layer.cpu_linear(x, layer.weight, None))
    table, others = (one.cpu_linear.__closure__[0].cell_contents.table for one in (layer, other))
    table.copy_(others)
    assert torch.equal(compiled(layer, x), first * 2)


def test_a_row_that_is_not_finite_stays_alone_with_int8_weights() -> None:
    """By vLLM's own product of a base in int8: each row of activations has a scale of its own."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    weight = torch.randint(-127, 128, (32, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    of_weights = torch.ones(32, 1)  # the handler only points to them
    handler = ops.create_onednn_scaled_mm(weight.t(), of_weights, torch.bfloat16, True, False, 64)
    clean = numbers(6, 64)
    broken = clean.index_fill(0, torch.tensor([2]), float("nan")).index_fill(0, torch.tensor([4]), float("inf"))
    products = []
    for x in (clean, broken):
        rows, scales, _ = ops.onednn_scaled_int8_quant(x, None, None, True)
        products.append(torch.empty(6, 32, dtype=torch.bfloat16))
        ops.onednn_scaled_mm(handler, rows, products[-1], scales, None, None, None)
    assert torch.equal(products[1][[0, 1, 3, 5]], products[0][[0, 1, 3, 5]])
    # NaN with AVX-512; with AVX2 a row of infinities stays infinite, which the next RMSNorm turns into NaN.
    assert not products[1][[2, 4]].isfinite().any()
