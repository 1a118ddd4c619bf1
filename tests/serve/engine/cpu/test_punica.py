"""The wrapper in vLLM's place: right where vLLM 0.32's own gives base rows the last slot's adapter."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from serve.engine.plugin import install_all

pytestmark = pytest.mark.engine  # imports vLLM, which takes as long as many tests together

INPUTS, OUTPUTS, RANK, SLOTS = 16, 24, 4, 2
# Three requests of one token in decode: the base model, then the adapters in slot 0 and in slot 1, the last one.
MAPPING = (0, 11, 12)


@dataclass(frozen=True)
class Wrappers:
    """vLLM's own wrapper and ours, as classes, and the mapping that they take."""

    stock: Any
    grouped: Any
    mapping: Any

    def made(self, wrapper_class: Any, *, is_prefill: bool = False) -> Any:
        """A wrapper that knows the batch."""
        wrapper = wrapper_class(max_num_batched_tokens=8, max_batches=4, device="cpu")
        mapping = self.mapping(index_mapping=MAPPING, prompt_mapping=MAPPING, is_prefill=is_prefill)
        wrapper.update_metadata(mapping, [11, 12], SLOTS, 100)
        return wrapper


@pytest.fixture(scope="module")
def wrappers() -> Wrappers:
    stock = pytest.importorskip("vllm.lora.punica_wrapper.punica_cpu", reason="vllm is not installed")
    from vllm.lora.layers import LoRAMapping

    from serve.engine.cpu.punica import GroupedPunicaWrapper

    return Wrappers(stock.PunicaWrapperCPU, GroupedPunicaWrapper, LoRAMapping)


def lora_output(wrapper: Any) -> Tensor:
    """(3, OUTPUTS) what the wrapper adds to each request's zero output."""
    y, x, lora_a, lora_b = operands()
    wrapper.add_lora_linear(y, x, (lora_a,), (lora_b,), 1.0, (OUTPUTS,))
    return y


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, lora_a, lora_b = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((3, INPUTS), (SLOTS, 1, RANK, INPUTS), (SLOTS, 1, OUTPUTS, RANK))
    )
    return torch.zeros(3, OUTPUTS, dtype=torch.bfloat16), x, lora_a, lora_b


def expected() -> Tensor:
    y, x, lora_a, lora_b = operands()
    rows = [lora_b[slot, 0].double() @ (lora_a[slot, 0].double() @ x[slot + 1].double()) for slot in (0, 1)]
    return torch.stack([y[0].double(), *rows])


@pytest.mark.parametrize("is_prefill", [False, True])
def test_each_row_of_a_mixed_batch_gets_its_own_adapter(wrappers: Wrappers, is_prefill: bool) -> None:
    output = lora_output(wrappers.made(wrappers.grouped, is_prefill=is_prefill))
    torch.testing.assert_close(output.double(), expected(), rtol=0.02, atol=0.1)


def test_base_rows_are_wrong_in_stock_vllm_which_is_why_the_wrapper_exists(wrappers: Wrappers) -> None:
    """When this fails, vLLM has mended its CPU path, and only speed speaks for the wrapper."""
    assert lora_output(wrappers.made(wrappers.stock))[0].abs().max() > 1
    assert lora_output(wrappers.made(wrappers.grouped))[0].abs().max() == 0


def test_the_plugin_puts_the_wrapper_in_its_place(wrappers: Wrappers) -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("the plugin leaves GPUs alone")
    install_all()
    place = wrappers.grouped
    assert current_platform.get_punica_wrapper() == f"{place.__module__}.{place.__name__}"


def test_the_model_is_compiled_though_small_functions_are_not(wrappers: Wrappers) -> None:
    """A backend of "eager" for the model would also switch its fusions off (vllm/config/vllm.py)."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("the plugin leaves GPUs alone")
    install_all()
    install_all()
    assert (current_platform.get_compile_backend(), current_platform.simple_compile_backend) == ("inductor", "eager")


def test_logits_are_left_alone_where_no_adapter_has_an_lm_head_part(wrappers: Wrappers) -> None:
    wrapper = wrappers.made(wrappers.grouped)
    y, x, lora_a, lora_b = operands()
    wrapper.add_lora_logits(y, x, torch.zeros_like(lora_a), lora_b, 1.0)
    assert y.abs().max() == 0
    wrapper.add_lora_logits(y, x, lora_a, lora_b, 1.0)
    torch.testing.assert_close(y.double(), expected(), rtol=0.02, atol=0.1)
