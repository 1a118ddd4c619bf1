"""DoRA on vLLM's own LoRA layers, as a GPU computes it: here the same code on a CPU, with vLLM's methods as fakes."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve.kernels.packed import Rescale

pytestmark = pytest.mark.engine  # imports vLLM, which takes as long as many tests together

WIDTHS, SLOTS = (3, 2), 2
ROWS = (-1, 0, 1, -1, 0)


@pytest.fixture(scope="module")
def rescaled() -> Any:
    pytest.importorskip("vllm", reason="vllm is not installed")
    from serve.engine.loading import rescaled

    return rescaled


@pytest.fixture
def layer(rescaled: Any) -> Any:
    """A layer with what is read of vLLM's; its slots are set, reset and added to by `stock_*` below."""
    made = SimpleNamespace(
        tp_size=1,
        _enable_aux_cuda_stream=False,
        device="cpu",
        base_layer=SimpleNamespace(skip_bias_add=False),
        lora_b_stacked=[torch.zeros(SLOTS, 1, width, 8) for width in WIDTHS],
        # Longer than the batch; what lies behind is anything.
        punica_wrapper=SimpleNamespace(_token_lora_indices=torch.tensor([*ROWS, 99, -7])),
        held={},
    )
    rescaled._create_lora_weights(lambda *_: None, made, SLOTS, None)
    return made


def stock_set(rescaled: Any) -> Callable[..., None]:
    """vLLM's: it resets the slot by the layer's own method, which is replaced too."""

    def set_lora(layer: Any, index: int, lora_a: Any, lora_b: Any) -> None:
        rescaled._reset_lora(lambda *_: None, layer, index)
        layer.held[index] = lora_a

    return set_lora


def computed(rescaled: Any, layer: Any, y: Tensor) -> Tensor:
    output = y.clone()
    rescaled._apply_lora_to_output(lambda _, x, out: out, layer, y, output)
    return output


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dora(rescaled: Any) -> Any:
    """On the first slice with a bias, and not on the second."""
    return rescaled.RescaledLora(["A", None], [Rescale(random(3, seed=1), random(3, seed=2)), None])


def test_only_rows_of_the_slot_are_rescaled(rescaled: Any, layer: Any) -> None:
    weights = dora(rescaled)
    rescaled._set_lora(stock_set(rescaled), layer, 1, weights, "B")
    assert layer.held[1] == ["A", None]  # vLLM gets its own A
    y = random(len(ROWS), sum(WIDTHS)).bfloat16()
    got = computed(rescaled, layer, y)
    rescale = weights.rescales[0]
    want = (y[2, :3].float() * rescale.scale + rescale.shift).bfloat16()
    assert torch.equal(got[2], torch.cat([want, y[2, 3:]]))
    assert torch.equal(got[[0, 1, 3, 4]], y[[0, 1, 3, 4]])


def test_a_slot_that_is_reset_or_taken_by_plain_lora_is_not_rescaled(rescaled: Any, layer: Any) -> None:
    stock = stock_set(rescaled)
    y = random(len(ROWS), sum(WIDTHS)).bfloat16()
    for slot in (0, 1):
        rescaled._set_lora(stock, layer, slot, dora(rescaled), "B")
    rescaled._set_lora(stock, layer, 0, ["plain"], "B")
    assert torch.equal(computed(rescaled, layer, y)[[1, 4]], y[[1, 4]])
    rescaled._reset_lora(lambda *_: None, layer, 1)
    assert torch.equal(computed(rescaled, layer, y), y)


def test_a_bias_that_others_add_is_not_rescaled(rescaled: Any, layer: Any) -> None:
    layer.base_layer.skip_bias_add = True
    weights = dora(rescaled)
    rescaled._set_lora(stock_set(rescaled), layer, 1, weights, "B")
    y = random(len(ROWS), sum(WIDTHS)).bfloat16()
    want = (y[2, :3].float() * weights.rescales[0].scale).bfloat16()
    assert torch.equal(computed(rescaled, layer, y)[2, :3], want)


@pytest.mark.parametrize("change", [{"tp_size": 2}, {"_enable_aux_cuda_stream": True}], ids=str)
def test_a_layer_that_cannot_hold_dora_refuses_it(rescaled: Any, layer: Any, change: dict[str, Any]) -> None:
    plain = SimpleNamespace(**vars(layer) | change)
    del plain.lorikeet_rescale
    rescaled._create_lora_weights(lambda *_: None, plain, SLOTS, None)
    rescaled._set_lora(stock_set(rescaled), plain, 1, ["plain"], "B")
    with pytest.raises(ValueError, match="DoRA is not served"):
        rescaled._set_lora(stock_set(rescaled), plain, 1, dora(rescaled), "B")


@pytest.mark.gpu
def test_on_a_gpu_a_captured_graph_rescales_what_is_set_later(rescaled: Any) -> None:
    rescale = rescaled.OutputRescale(SLOTS, WIDTHS, "cuda")
    slots = torch.tensor(ROWS, device="cuda")
    y = random(len(ROWS), sum(WIDTHS)).bfloat16().cuda()
    output = y.clone()
    rescale.apply(output, slots)  # warms up
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rescale.apply(output, slots)
    scale, shift = random(3, seed=1), random(3, seed=2)
    rescale.set(1, [Rescale(scale, shift), None])
    output.copy_(y)
    graph.replay()
    want = (y[2, :3].float().cpu() * scale + shift).bfloat16()
    torch.testing.assert_close(output[2, :3].cpu(), want)
    assert torch.equal(output[[0, 1, 3, 4]], y[[0, 1, 3, 4]])
