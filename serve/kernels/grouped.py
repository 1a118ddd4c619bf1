"""LoRA for a batch of mixed adapters, in plain torch: tokens are grouped by adapter, one matrix product a group.

vLLM's own CPU path gathers a weight matrix per token, and reads index -1 ("no adapter") as the last slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_OF_VALUE, _OF_COLUMN = 49471, 37345
"""Factors of the dither, as in lora.cpp; an int32 that overflows keeps its lower bits."""


@dataclass(frozen=True)
class TokenGroup:
    """The rows of a batch that use one adapter slot: a slice where they are adjacent, else their indices."""

    slot: int
    rows: slice | Tensor


def group_tokens(slots: Sequence[int]) -> tuple[TokenGroup, ...]:
    """Group the rows of a batch by adapter slot; rows of slot -1 (no adapter) are in no group.

    Args:
        slots: (T,) adapter slot of each token, -1 for the base model.
    """
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            rows_of.setdefault(slot, []).append(row)
    return tuple(TokenGroup(slot, _as_slice_or_index(rows)) for slot, rows in rows_of.items())


def _as_slice_or_index(rows: list[int]) -> slice | Tensor:
    is_adjacent = rows[-1] - rows[0] + 1 == len(rows)
    return slice(rows[0], rows[-1] + 1) if is_adjacent else torch.tensor(rows)


def add_lora(
    y: Tensor,
    x: Tensor,
    groups: Sequence[TokenGroup],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    output_slices: Sequence[int],
    scale: float = 1.0,
    offset: int = 0,
) -> None:
    """`y[:, slice] += scale * x @ A[slot].T @ B[slot].T` for every group and slice, in place.

    Args:
        y: (T, N) output of the base layer; changed.
        x: (T, K) input of the base layer.
        lora_a: Per slice (slots, 1, R, K).
        lora_b: Per slice (slots, 1, N_slice, R).
        output_slices: Columns of `y` per slice.
        offset: First column.
    """
    for group in groups:
        rows = x[group.rows].to(lora_a[0].dtype)
        start = offset
        for a, b, width in zip(lora_a, lora_b, output_slices, strict=True):
            hidden = torch.mm(rows, a[group.slot, 0].t())
            _add_rows(y[:, start : start + width], group, hidden, b[group.slot, 0], scale)
            start += width


def expand(y: Tensor, hidden: Tensor, groups: Sequence[TokenGroup], lora_b: Tensor, offset: int = 0) -> None:
    """`y[:, offset:offset+N] += hidden @ B[slot].T` per group, in place; hidden (T, R), lora_b (slots, 1, N, R)."""
    target = y[:, offset : offset + lora_b.shape[2]]
    for group in groups:
        _add_rows(target, group, hidden[group.rows].to(lora_b.dtype), lora_b[group.slot, 0], 1.0)


def shrink(
    y: Tensor, x: Tensor, groups: Sequence[TokenGroup], lora_a: Tensor, scale: float, *, add: bool = True
) -> None:
    """`y += scale * x @ A[slot].T` per group, in place; y (T, R), lora_a (slots, 1, R, K)."""
    for group in groups:
        product = torch.mm(x[group.rows].to(lora_a.dtype), lora_a[group.slot, 0].t()).to(y.dtype) * scale
        y[group.rows] = y[group.rows] + product if add else product


def _add_rows(y: Tensor, group: TokenGroup, hidden: Tensor, b: Tensor, scale: float) -> None:
    """`y[rows] += scale * hidden @ b.T`; hidden (G, R), b (N, R)."""
    change = torch.mm(hidden, b.t())
    y[group.rows] = _sum(y[group.rows], change if scale == 1.0 else change * scale)


def _sum(y: Tensor, change: Tensor) -> Tensor:
    """`y + change` in the type of y; bfloat16 is rounded with a dither (see lora.cpp)."""
    if y.dtype != torch.bfloat16:
        return y + change.to(y.dtype)
    total = y.float() + change.float()
    dither = (
        y.view(torch.int16).int() * _OF_VALUE + torch.arange(y.shape[1], dtype=torch.int32) % 16 * _OF_COLUMN
    ) & 0xFFFF
    rounded = ((total.view(torch.int32) + dither) & ~0xFFFF).view(torch.float32)
    return torch.where(total.isnan(), total, rounded).bfloat16()
