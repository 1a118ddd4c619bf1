"""vLLM's linear layers with LoRA, in vLLM's own classes, computed by our operator on packed weights."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from serve.kernels.packed import Rescale, pack_layer
from tests.operators import require_operators

pytestmark = pytest.mark.engine  # imports vLLM, which takes as long as many tests together

INPUTS, SLOTS = 64, 2
MAX_RANK: Literal[8] = 8
HEAD, NUM_HEADS, NUM_KV_HEADS = 16, 4, 2
WIDTHS = (NUM_HEADS * HEAD, NUM_KV_HEADS * HEAD, NUM_KV_HEADS * HEAD)
# Rows of a batch: the base model, then the adapters in slot 0, in slot 1, and the base model again.
ROWS = (-1, 0, 1, -1)

Adapter = tuple[list[Tensor | None], list[Tensor | None]]
"""A and B of each slice, None where the adapter leaves it alone."""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What vLLM's layers want around them: a configuration, and a group of one process."""
    pytest.importorskip("vllm", reason="vllm is not installed")
    from vllm.config import LoRAConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.platforms import current_platform

    from serve.engine.cpu.native import compute_natively

    if not current_platform.is_cpu():
        pytest.skip("on a GPU vLLM's own layers compute LoRA")
    require_operators()
    assert compute_natively()
    assert compute_natively()  # vLLM loads a plugin more than once
    place = tmp_path_factory.mktemp("group") / "store"
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{place}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        yield LoRAConfig(max_lora_rank=MAX_RANK, max_loras=SLOTS, lora_dtype=torch.bfloat16)
        cleanup_dist_env_and_memory()


@pytest.fixture
def layer(configured: Any) -> Any:
    """Query, key and value in one, with two slots that hold nothing."""
    from vllm.lora.layers import MergedQKVParallelLinearWithLoRA
    from vllm.model_executor.layers.linear import QKVParallelLinear

    from serve.engine.cpu.punica import GroupedPunicaWrapper

    base = QKVParallelLinear(INPUTS, HEAD, NUM_HEADS, NUM_KV_HEADS, bias=False, params_dtype=torch.bfloat16)
    assert isinstance(base.weight, Tensor)
    torch.nn.init.normal_(base.weight, std=0.1)
    base.quant_method.process_weights_after_loading(base)
    made = MergedQKVParallelLinearWithLoRA(base)
    made.create_lora_weights(SLOTS, configured)
    wrapper = GroupedPunicaWrapper(max_num_batched_tokens=8, max_batches=4, device="cpu")
    wrapper.slots[: len(ROWS)] = torch.tensor(ROWS)
    made.set_mapping(wrapper)
    return made


def random_adapter(seed: int, rank: int, left_alone: int | None = None) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    pairs = [(random(rank, INPUTS), random(width, rank)) for width in WIDTHS]
    lora_a: list[Tensor | None] = [a for a, _ in pairs]
    lora_b: list[Tensor | None] = [b for _, b in pairs]
    if left_alone is not None:
        lora_a[left_alone] = lora_b[left_alone] = None
    return lora_a, lora_b


def delta(adapter: Adapter, row: Tensor) -> Tensor:
    """In double precision, what the adapter adds to one row of the output."""
    parts = [
        torch.zeros(width).double() if a is None or b is None else b.double() @ (a.double() @ row.double())
        for a, b, width in zip(*adapter, WIDTHS, strict=True)
    ]
    return torch.cat(parts)


def added(layer: Any, rows: Tensor) -> Tensor:
    """By the layer, to what its base computes."""
    with torch.inference_mode():
        difference: Tensor = layer.apply(rows) - layer.base_layer.quant_method.apply(layer.base_layer, rows)
    return difference.double()


@pytest.fixture
def rows() -> Tensor:
    return torch.randn((len(ROWS), INPUTS), generator=torch.Generator().manual_seed(9)).bfloat16()


def expected(adapters: dict[int, Adapter], rows: Tensor) -> Tensor:
    none = torch.zeros(sum(WIDTHS)).double()
    return torch.stack(
        [delta(adapters[slot], row) if slot in adapters else none for slot, row in zip(ROWS, rows, strict=True)]
    )


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.5)


def test_vllm_keeps_no_buffers_as_large_as_the_largest_rank(layer: Any) -> None:
    assert [stacked.shape[0] for stacked in (*layer.lora_a_stacked, *layer.lora_b_stacked)] == [0] * 6


def test_each_row_of_a_mixed_batch_gets_its_own_adapter(layer: Any, rows: Tensor) -> None:
    """Of different ranks, one of which leaves a slice alone."""
    adapters = {0: random_adapter(0, 8), 1: random_adapter(1, 3, left_alone=1)}
    for slot, adapter in adapters.items():
        layer.set_lora(slot, *adapter)
    got, want = added(layer, rows), expected(adapters, rows)
    assert want.abs().max() > 20
    close(got, want)
    assert got[[0, 3]].abs().max() == 0  # base rows, bit for bit


def test_a_slot_that_is_reset_adds_nothing(layer: Any, rows: Tensor) -> None:
    adapters = {slot: random_adapter(slot, 4) for slot in (0, 1)}
    for slot, adapter in adapters.items():
        layer.set_lora(slot, *adapter)
    layer.reset_lora(0)
    close(added(layer, rows), expected({1: adapters[1]}, rows))
    layer.set_lora(0, *adapters[1])
    close(added(layer, rows), expected({0: adapters[1], 1: adapters[1]}, rows))


def test_dora_rescales_what_the_base_computed(layer: Any, rows: Tensor) -> None:
    """Of the value slice, in slot 1; the same batch has plain LoRA in slot 0, and base rows."""
    plain, (lora_a, lora_b) = random_adapter(0, 8), random_adapter(1, 4)
    scale, shift = (torch.randn(WIDTHS[2], generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
    pairs = [(a, b) for a, b in zip(lora_a, lora_b, strict=True) if a is not None and b is not None]
    layer.set_lora(0, *plain)
    layer.set_lora(1, pack_layer(pairs, [None, None, Rescale(scale, shift)]), None)
    with torch.inference_mode():
        base = layer.base_layer.quant_method.apply(layer.base_layer, rows).double()
    want = expected({0: plain, 1: (lora_a, lora_b)}, rows) + base
    value = slice(WIDTHS[0] + WIDTHS[1], None)
    want[2, value] += base[2, value] * (scale.double() - 1) + shift
    with torch.inference_mode():
        close(layer.apply(rows).double(), want)
    layer.reset_lora(1)
    assert added(layer, rows)[2].abs().max() == 0


def test_dora_leaves_a_bias_alone_that_is_added_later(layer: Any, rows: Tensor) -> None:
    layer.base_layer.skip_bias_add = True
    ones = torch.ones(WIDTHS[0])
    pairs = [(torch.zeros(8, INPUTS), torch.zeros(width, 8)) for width in WIDTHS]
    layer.set_lora(1, pack_layer(pairs, [Rescale(ones, ones), None, None]), None)
    assert added(layer, rows).abs().max() == 0


def test_dora_on_a_layer_of_another_type_is_refused(layer: Any) -> None:
    layer.base_layer.params_dtype = torch.float32
    pairs = [(torch.zeros(8, INPUTS), torch.zeros(width, 8)) for width in WIDTHS]
    with pytest.raises(ValueError, match=r"DoRA on a layer of torch\.float32 is not served"):
        layer.set_lora(1, pack_layer(pairs, [Rescale(torch.ones(WIDTHS[0])), None, None]), None)


def test_layers_of_another_type_are_left_to_vllm(configured: Any) -> None:
    from vllm.config import LoRAConfig
    from vllm.lora.layers import ReplicatedLinearWithLoRA
    from vllm.model_executor.layers.linear import ReplicatedLinear

    from serve.engine.cpu.native import slot_table

    made = ReplicatedLinearWithLoRA(ReplicatedLinear(INPUTS, 8, bias=False, params_dtype=torch.float32))
    made.create_lora_weights(SLOTS, LoRAConfig(max_lora_rank=MAX_RANK, max_loras=SLOTS, lora_dtype=torch.float32))
    assert slot_table(made) is None
    assert made.lora_a_stacked[0].shape == (SLOTS, 1, MAX_RANK, INPUTS)
