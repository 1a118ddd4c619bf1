"""vLLM's linear LoRA layers on a CPU, computed by our operator on weights that stay where they are.

vLLM (0.32, lora/layers) copies each activated adapter into buffers that are as large as the largest rank. Here a
layer's slot only points at the packed weights (serve/kernels/packed.py), which are packed once, when an adapter comes
into host memory; to activate it again costs nothing, and no rank is padded to the largest.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers import LogitsProcessorWithLoRA, MergedColumnParallelLinearWithLoRA, VocabParallelEmbeddingWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager

from serve.engine.loading import mapped
from serve.engine.loading.mapped import MappedModule
from serve.engine.loading.rescaled import adds_bias_later
from serve.engine.loading.staging import Layout, read_staged
from serve.engine.replace import Replacement, install
from serve.kernels.packed import LayerWeights, SlotTable, pack_layer


def compute_natively() -> bool:
    """Put our methods in the place of vLLM's; whether they are. Done twice, it does no more."""
    replacements = [
        Replacement(BaseLinearLayerWithLoRA, "reset_lora", _reset_lora),
        Replacement(BaseLinearLayerWithLoRA, "_apply_lora_to_output", _apply_lora_to_output),
        Replacement(VocabParallelEmbeddingWithLoRA, "forward", _embed),
        Replacement(LoRAModelManager, "_create_merged_loras_inplace", _merge),
        *mapped.REPLACEMENTS,
    ]
    for layer_class in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA):
        replacements.append(Replacement(layer_class, "create_lora_weights", _create_lora_weights))
        replacements.append(Replacement(layer_class, "set_lora", _set_lora))
    for vocabulary_class in (VocabParallelEmbeddingWithLoRA, LogitsProcessorWithLoRA):
        replacements.append(Replacement(vocabulary_class, "create_lora_weights", _create_vocabulary_weights))
        replacements.append(Replacement(vocabulary_class, "set_lora", _set_vocabulary_lora))
        replacements.append(Replacement(vocabulary_class, "reset_lora", _reset_vocabulary_lora))
    if not install(*replacements):
        return False
    mapped.map_adapters(mapped.Reader(lambda _: "panels", _widths_of, _read))
    return True


def slot_table(layer: Any) -> SlotTable | None:
    """The layer's slots; None where vLLM's own buffers are used."""
    table: SlotTable | None = layer.__dict__.get("lorikeet_slots")
    return table


def _create_lora_weights(stock: Any, layer: Any, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
    is_ours = (
        lora_config.lora_dtype == torch.bfloat16
        and layer.input_size % 2 == 0
        and not (lora_config.fully_sharded_loras and layer.tp_size > 1)
    )
    # Of no slots: vLLM reads shapes from its buffers, and nothing else.
    stock(layer, 0 if is_ours else max_loras, lora_config, model_config)
    if is_ours:
        layer.lorikeet_slots = SlotTable(max_loras, layer.output_slices)


def _set_lora(stock: Any, layer: Any, index: int, lora_a: Any, lora_b: Any) -> None:
    slots = slot_table(layer)
    if slots is None:
        stock(layer, index, lora_a, lora_b)
        return
    weights = lora_a if isinstance(lora_a, LayerWeights) else _pack(layer, lora_a, lora_b)
    slots.set(index, _checked_dora(layer, weights) if weights.is_rescaled else weights)


def _checked_dora(layer: Any, weights: LayerWeights) -> LayerWeights:
    """DoRA as the layer takes it.

    Raises:
        ValueError: The operator cannot rescale the layer's output where it lies.
    """
    if layer.base_layer.params_dtype != torch.bfloat16:
        raise ValueError(f"DoRA on a layer of {layer.base_layer.params_dtype} is not served; bfloat16 is.")
    return weights.without_shift() if adds_bias_later(layer) else weights


def _reset_lora(stock: Any, layer: Any, index: int) -> None:
    slots = slot_table(layer)
    if slots is None:
        stock(layer, index)
    else:
        slots.clear(index)


def _apply_lora_to_output(stock: Any, layer: Any, x: Tensor, output: Tensor) -> Tensor:
    slots = slot_table(layer)
    if slots is None:
        return stock(layer, x, output)  # type: ignore[no-any-return] # vLLM's, returns a tensor
    token_slots = layer.punica_wrapper.slots
    # No branch on what the batch holds: the model is traced once, for all batches.
    inputs = x.reshape(-1, x.shape[-1]).contiguous()
    rows = output.view(-1, output.shape[-1])
    if rows.dtype == inputs.dtype == torch.bfloat16:
        torch.ops.lorikeet.add_lora(rows, inputs, slots.table, token_slots, slots.widths)
    else:
        delta = torch.zeros_like(rows, dtype=torch.bfloat16)
        torch.ops.lorikeet.add_lora(delta, inputs.bfloat16(), slots.table, token_slots, slots.widths)
        rows.add_(delta)
    return output


def _embed(stock: Any, layer: Any, x: Tensor) -> Tensor:
    """vLLM's, without its gather from an A of the whole vocabulary where no adapter has one."""
    output: Tensor = layer.base_layer.forward(x)
    torch.ops.lorikeet.add_embedding_lora(
        output.view(-1, output.shape[-1]),
        x.reshape(-1),
        layer.lora_a_stacked,
        layer.lora_b_stacked,
        layer.lorikeet_used,
        layer.punica_wrapper.slots,
    )
    return output


def _widths_of(layer: Any) -> list[int] | None:
    slots = slot_table(layer)
    return slots.widths if slots else None


def _read(folder: Path, layout: Layout, _: Any) -> dict[str, MappedModule] | None:
    staged = read_staged(folder, [len(shape.widths) for shape in layout.layers])
    if staged is None:
        return None
    return {shape.name: MappedModule(part) for shape, part in zip(layout.layers, staged, strict=True) if part}


def _merge(stock: Any, manager: Any, adapter: LoRAModel) -> None:
    """vLLM's, and what it has merged is packed."""
    stock(manager, adapter)
    for name, layer in manager.modules.items():
        weights = manager._get_lora_layer_weights(adapter, name)
        if weights is not None and slot_table(layer) is not None and not isinstance(weights, MappedModule):
            key = name if adapter.check_lora_name(name) else name.removeprefix("model.")  # as vLLM looks it up
            loras: dict[str, Any] = adapter.loras
            loras[key] = MappedModule(_pack(layer, weights.lora_a, weights.lora_b))


def _pack(layer: Any, lora_a: Any, lora_b: Any) -> LayerWeights:
    """Of vLLM's tensors for one layer, one of the whole or one a slice, this worker's part."""
    if isinstance(lora_a, list) and len(lora_b) != layer.n_slices:
        lora_a, lora_b = layer.expand_packed_lora(lora_a, lora_b)
    elif not isinstance(lora_a, list) and layer.n_slices > 1:
        lora_a, lora_b = [lora_a] * layer.n_slices, list(lora_b.split(layer.base_layer.output_sizes))
    if layer.tp_size > 1:
        lora_a, lora_b = layer.slice_lora_a(lora_a), layer.slice_lora_b(lora_b)
    if not isinstance(lora_a, list):
        lora_a, lora_b = [lora_a], [lora_b]
    return pack_layer([None if a is None or b is None else (a, b) for a, b in zip(lora_a, lora_b, strict=True)])


def _create_vocabulary_weights(
    stock: Any, layer: Any, max_loras: int, lora_config: Any, model_config: Any = None
) -> None:
    stock(layer, max_loras, lora_config, model_config)
    layer.lorikeet_used = torch.zeros(max_loras, dtype=torch.bool)


def _set_vocabulary_lora(stock: Any, layer: Any, index: int, lora_a: Any, lora_b: Any) -> None:
    stock(layer, index, lora_a, lora_b)
    layer.lorikeet_used[index] = True


def _reset_vocabulary_lora(stock: Any, layer: Any, index: int) -> None:
    """Only where something was set: it writes over the whole vocabulary, and few adapters have a part there."""
    if layer.lorikeet_used[index]:
        stock(layer, index)
        layer.lorikeet_used[index] = False
