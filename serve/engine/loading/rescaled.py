"""DoRA on vLLM's own LoRA layers, on a GPU or by plain torch: outputs are rescaled before LoRA is added.

Where our operator computes, it does this itself (serve/kernels/lora.cpp). vLLM has no DoRA: of a staged adapter the
factors are in B already (packing.py), and what is left is `y * scale + shift`, per token by its adapter's slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers import MergedColumnParallelLinearWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

from serve.engine.replace import Replacement, install
from serve.kernels.packed import Rescale


@dataclass(frozen=True)
class RescaledLora:
    """In the place of A, as a layer's `set_lora` gets it: A, and what each slice is rescaled by."""

    lora_a: Any
    rescales: Sequence[Rescale | None]


class OutputRescale:
    """What the outputs of one layer are rescaled by, of each slot; the last row is for tokens without adapter.

    Args:
        widths: Outputs of each slice.
    """

    def __init__(self, num_slots: int, widths: Sequence[int], device: Any) -> None:
        self._widths = list(widths)
        self._scale = torch.ones(num_slots + 1, sum(widths), device=device)
        self._shift = torch.zeros(num_slots + 1, sum(widths), device=device)
        self._used: set[int] = set()

    def set(self, slot: int, rescales: Sequence[Rescale | None]) -> None:
        """Fill the row of a slot that was reset."""
        self._used.add(slot)
        start = 0
        for width, rescale in zip(self._widths, rescales, strict=True):
            columns = slice(start, start + width)
            if rescale is not None:
                self._scale[slot, columns].copy_(rescale.scale, non_blocking=True)
            if rescale is not None and rescale.shift is not None:
                self._shift[slot, columns].copy_(rescale.shift, non_blocking=True)
            start += width

    def reset(self, slot: int) -> None:
        if slot in self._used:
            self._used.discard(slot)
            self._scale[slot] = 1
            self._shift[slot] = 0

    def apply(self, output: Tensor, slots: Tensor) -> None:
        """Rescale (T, N) in place.

        Args:
            slots: int64 (at least T,), -1 for none; what lies beyond the batch's own tokens may be anything.
        """
        if output.device.type == "cpu" and not self._used:
            return  # on a GPU a captured graph is replayed, and a branch is not in it
        none = len(self._scale) - 1
        own = slots[: len(output)]
        rows = torch.where((own < 0) | (own > none), none, own)
        output.copy_(torch.addcmul(self._shift[rows], output.float(), self._scale[rows]))


def rescale_outputs() -> bool:
    """Replace vLLM's methods; whether they are. Done twice, it does no more."""
    replacements = [
        Replacement(BaseLinearLayerWithLoRA, "reset_lora", _reset_lora),
        Replacement(BaseLinearLayerWithLoRA, "_apply_lora_to_output", _apply_lora_to_output),
    ]
    for layer_class in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA):
        replacements.append(Replacement(layer_class, "create_lora_weights", _create_lora_weights))
        replacements.append(Replacement(layer_class, "set_lora", _set_lora))
    return install(*replacements)


def adds_bias_later(layer: Any) -> bool:
    """Whether the layer's bias is added by the code around it, and so is never rescaled."""
    return bool(getattr(layer.base_layer, "skip_bias_add", False))


def output_rescale(layer: Any) -> OutputRescale | None:
    """None where the layer cannot hold DoRA."""
    found: OutputRescale | None = layer.__dict__.get("lorikeet_rescale")
    return found


def _create_lora_weights(stock: Any, layer: Any, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
    stock(layer, max_loras, lora_config, model_config)
    # With a second stream, vLLM adds LoRA elsewhere. A part of a layer is never staged.
    if layer.tp_size == 1 and not layer._enable_aux_cuda_stream:
        widths = [stacked.shape[2] for stacked in layer.lora_b_stacked]
        layer.lorikeet_rescale = OutputRescale(max_loras, widths, layer.device)


def _set_lora(stock: Any, layer: Any, index: int, lora_a: Any, lora_b: Any) -> None:
    if not isinstance(lora_a, RescaledLora):
        stock(layer, index, lora_a, lora_b)
        return
    rescale = output_rescale(layer)
    if rescale is None:
        raise ValueError("DoRA is not served with VLLM_LORA_ENABLE_DUAL_STREAM. Unset it.")
    stock(layer, index, lora_a.lora_a, lora_b)  # resets the slot first
    rescales = lora_a.rescales
    if adds_bias_later(layer):
        rescales = [each and Rescale(each.scale) for each in rescales]
    rescale.set(index, rescales)


def _reset_lora(stock: Any, layer: Any, index: int) -> None:
    stock(layer, index)
    rescale = output_rescale(layer)
    if rescale is not None:
        rescale.reset(index)


def _apply_lora_to_output(stock: Any, layer: Any, x: Tensor, output: Tensor) -> Tensor:
    rescale = output_rescale(layer)
    if rescale is not None:
        rescale.apply(output.view(-1, output.shape[-1]), layer.punica_wrapper._token_lora_indices)
    return stock(layer, x, output)  # type: ignore[no-any-return] # vLLM's, returns a tensor
