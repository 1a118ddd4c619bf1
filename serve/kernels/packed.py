"""The layout in which `lora.cpp` reads an adapter's weights.

A matrix (N, K) lies in panels of 16 of its N rows, a panel as [K/2][16][2]: for each pair of inputs the weights of 16
outputs side by side, as AVX512-BF16's dot product and AMX's tile product take them. The last panel of A is 8 wide
where 8 are enough.

A layer's table, int64 (slots, slices, 5), holds the address of A, the address of B, the padded rank, and for DoRA the
addresses of the columns' factors and constants (float32), for each slice of each adapter slot. Rank 0 says that the
adapter leaves the slice alone, address 0 that there is nothing to multiply by or to add.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ENTRY = 5
"""Numbers of a slice in the table."""

_PANEL = 16
_RANK_STEP = 8


@dataclass(frozen=True)
class LayerWeights:
    """One adapter's part of one layer, ready to be used where it lies.

    Attributes:
        entries: int64 (slices, 5), a row of the layer's table.
        memory: What the addresses point into.
    """

    entries: NDArray[np.int64]
    memory: tuple[Tensor, ...]

    @property
    def is_rescaled(self) -> bool:
        """Whether it is DoRA, which multiplies the base's output."""
        return bool(self.entries[:, 3].any())

    def without_shift(self) -> "LayerWeights":
        """For a layer whose bias is added later, by others."""
        return LayerWeights(self.entries * np.array([1, 1, 1, 1, 0]), self.memory)


@dataclass(frozen=True)
class Rescale:
    """DoRA on one slice: `y * scale + shift`, float32 (N,); no shift where the base has no bias."""

    scale: Tensor
    shift: Tensor | None = None


class SlotTable:
    """Which weights each adapter slot of one layer has; `table` is what the operator reads."""

    def __init__(self, num_slots: int, widths: Sequence[int]) -> None:
        self.widths = list(widths)
        self.table = torch.zeros(num_slots, len(widths), ENTRY, dtype=torch.int64)
        self._rows: NDArray[np.int64] = self.table.numpy()  # the same memory: a row is written in a tenth of the time
        self._weights: list[LayerWeights | None] = [None] * num_slots

    def set(self, slot: int, weights: LayerWeights) -> None:
        """Point a slot at weights, and keep them in memory."""
        self._rows[slot] = weights.entries
        self._weights[slot] = weights

    def clear(self, slot: int) -> None:
        if self._weights[slot] is not None:
            self._rows[slot] = 0
            self._weights[slot] = None


def padded_rank(rank: int) -> int:
    """The rank that is stored: zeros fill it up to a multiple of 8."""
    return -(-rank // _RANK_STEP) * _RANK_STEP


def pack_layer(
    slices: Sequence[tuple[Tensor, Tensor] | None], rescales: Sequence[Rescale | None] | None = None
) -> LayerWeights:
    """Pack A (R, K) and B (N, R) of each slice of a layer; None: the adapter leaves the slice alone.

    Args:
        slices: K must be even; DoRA's factor is in B already.
        rescales: Of each slice that is DoRA.
    """
    entries, memory = np.zeros((len(slices), ENTRY), np.int64), []
    for entry, pair, rescale in zip(entries, slices, rescales or [None] * len(slices), strict=True):
        if pair is None:
            continue
        parts = [pack_a(pair[0]), pack_b(pair[1])]
        constants = [part for part in (rescale.scale, rescale.shift) if part is not None] if rescale else []
        entry[:3] = (parts[0].data_ptr(), parts[1].data_ptr(), padded_rank(pair[0].shape[0]))
        entry[3 : 3 + len(constants)] = [part.data_ptr() for part in constants]
        memory += parts + constants
    return LayerWeights(entries, tuple(memory))


def pack_a(lora_a: Tensor) -> Tensor:
    """A (..., R, K) as panels: bfloat16 (..., `padded_rank(R) * K`)."""
    rank, inputs = lora_a.shape[-2:]
    padded = _padded(lora_a, padded_rank(rank), inputs)
    whole = padded.shape[-2] // _PANEL * _PANEL
    panels, rest = _panels(padded[..., :whole, :], _PANEL), _panels(padded[..., whole:, :], _RANK_STEP)
    return torch.cat([panels, rest], dim=-1) if whole < padded.shape[-2] else panels


def pack_b(lora_b: Tensor) -> Tensor:
    """B (..., N, R) as panels: bfloat16 (..., N rounded up to 16 times `padded_rank(R)`)."""
    outputs, rank = lora_b.shape[-2:]
    return _panels(_padded(lora_b, -(-outputs // _PANEL) * _PANEL, padded_rank(rank)), _PANEL)


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    if matrix.shape[-2:] == (rows, columns):
        return matrix.bfloat16().contiguous()
    padded = torch.zeros(*matrix.shape[:-2], rows, columns, dtype=torch.bfloat16)
    padded[..., : matrix.shape[-2], : matrix.shape[-1]] = matrix
    return padded


def _panels(matrix: Tensor, width: int) -> Tensor:
    *many, rows, columns = matrix.shape
    pairs = matrix.contiguous().view(torch.int32)  # moved as one: twice as fast
    panels = pairs.view(*many, rows // width, width, columns // 2).transpose(-1, -2)
    return panels.reshape(*many, rows * columns // 2).view(torch.bfloat16)
