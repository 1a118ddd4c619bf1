"""vLLM's LoRA arithmetic on the CPU, made right for batches that mix base and adapter requests.

Stock `PunicaWrapperCPU` (vllm 0.32, lora/punica_wrapper/punica_cpu.py) indexes its weights with the slot of each
token; a base request's slot is -1, which is the last slot, so base answers carry that slot's adapter.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from serve.kernels.grouped import TokenGroup, add_lora, expand, group_tokens, shrink


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """Computes LoRA per adapter group; rows without an adapter are never touched."""

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self._has_adapters = False
        self.slots.fill_(-1)  # stock leaves it uninitialised
        self._groups: dict[str, tuple[TokenGroup, ...]] = {}

    @property
    def slots(self) -> Tensor:
        """int64, one a token of the batch, -1: none; longer than the batch."""
        slots: Tensor = self._token_lora_indices
        return slots

    def update_metadata(self, mapping: Any, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(mapping, *args, **kwargs)
        self._has_adapters = any(mapping.index_mapping)
        self._groups = {}

    @property
    def _token_groups(self) -> tuple[TokenGroup, ...]:
        return self._grouped("tokens", self.token_lora_indices)

    @property
    def _sampler_groups(self) -> tuple[TokenGroup, ...]:
        return self._grouped("sampler", self.sampler_indices)

    def forget_sampler_groups(self) -> None:
        """They are made again, of what `sampler_indices` then is."""
        self._groups.pop("sampler", None)

    def _grouped(self, name: str, slots: Tensor) -> tuple[TokenGroup, ...]:
        if name not in self._groups:  # not every batch needs it
            self._groups[name] = group_tokens(slots.tolist()) if self._has_adapters else ()
        return self._groups[name]

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        rows, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        add_lora(rows, inputs, self._token_groups, lora_a_stacked, lora_b_stacked, output_slices, scale)

    def add_shrink(
        self,
        y: tuple[Tensor, ...] | Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        inputs = x.view(-1, x.shape[-1])
        for index, lora_a in enumerate(lora_a_stacked):
            rows = y[index].view(-1, y[index].shape[-1])
            shrink(rows, inputs, self._token_groups, lora_a, scale)

    def add_expand(
        self,
        y: Tensor,
        x: tuple[Tensor, ...] | Tensor,
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        rows, offset = y.view(-1, y.shape[-1]), offset_start
        for index, width in enumerate(output_slices):
            if not add_inputs:
                rows[:, offset : offset + width] = 0
            expand(rows, x[index], self._token_groups, lora_b_stacked[index], offset)
            offset += width

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        if not add_inputs:
            y.zero_()
        groups = [group for group in self._token_groups if lora_b_stacked[group.slot].any()]
        expand(y.view(-1, y.shape[-1]), x, groups, lora_b_stacked)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        logits, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        # One slot at a time: an adapter without an lm_head part has a zero A, and the product over the whole
        # vocabulary is left out.
        for group in self._sampler_groups:
            if lora_a_stacked[group.slot].any():
                add_lora(
                    logits,
                    inputs,
                    (group,),
                    (lora_a_stacked,),
                    (lora_b_stacked,),
                    (lora_b_stacked.shape[2],),
                    scale,
                )

    def apply_lora_full_linear(
        self, y: Tensor, x: Tensor, weight_stacked: Tensor, bias_stacked: Tensor, module_enabled: Tensor
    ) -> None:
        adapter_y = torch.zeros((x.size(0), weight_stacked.size(-2)), dtype=torch.float32, device=x.device)
        shrink(adapter_y, x, self._sampler_groups, weight_stacked, 1.0)
        y.copy_(self._select_full_linear_output(y, adapter_y, bias_stacked, module_enabled))
