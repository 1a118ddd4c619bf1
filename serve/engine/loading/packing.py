"""The bytes of a staged adapter: A, B and DoRA's factors and constants, in the form that the layers take."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from serve.kernels.packed import Rescale, pack_a, pack_b, padded_rank

Form = Literal["panels", "bfloat16", "float16", "float32"]
"""What the engine's layers take: the panels of our operator (serve/kernels/packed.py), or matrices of this type,
A (R, K) and B (N, R) by rows, as vLLM's own do."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Entries = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class AdapterSlice:
    """An adapter's part of one slice, at (layer, slice), as the file has it; `rescale` is that of DoRA."""

    place: tuple[int, int]
    lora_a: Tensor
    lora_b: Tensor
    scaling: float
    rescale: Rescale | None = None


def pack_slices(slices: Sequence[AdapterSlice], form: Form, entries: Entries) -> Bytes:
    """The bytes of all slices one after the other; writes where each begins, and its rank, into `entries`.

    Slices of one shape are packed together: hundreds of small matrices cost more in calls than in bytes.
    """
    alike: dict[tuple[Any, ...], list[AdapterSlice]] = defaultdict(list)
    for one in slices:
        is_dora = one.rescale is not None
        alike[one.lora_a.shape, one.lora_b.shape, one.lora_a.dtype, one.lora_b.dtype, is_dora].append(one)
    pairs = {
        one.place: pair for group in alike.values() for one, pair in zip(group, _pack_alike(group, form), strict=True)
    }
    parts: list[tuple[int, Bytes]] = []
    offset = 0
    for one in slices:
        rank = one.lora_a.shape[0]
        entries[one.place][2] = padded_rank(rank) if form == "panels" else rank
        for number, part in (*zip((0, 1), pairs[one.place], strict=True), *_constants(one.rescale)):
            entries[one.place][number] = offset
            parts.append((offset, part))
            offset += _whole_lines(part.nbytes)
    weights = np.zeros(max(1, offset), np.uint8)
    for begin, part in parts:
        weights[begin : begin + part.nbytes] = part
    return weights


def _pack_alike(group: Sequence[AdapterSlice], form: Form) -> Iterator[tuple[Bytes, Bytes]]:
    """Bytes of A and of B of each; B is multiplied in fp32 by the scaling, and by DoRA's factors."""
    factors = torch.tensor([one.scaling for one in group], dtype=torch.float32).view(-1, 1, 1)
    if rescales := [one.rescale for one in group if one.rescale is not None]:
        factors = factors * torch.stack([rescale.scale for rescale in rescales]).unsqueeze(-1)
    a = torch.stack([one.lora_a for one in group])
    b = torch.stack([one.lora_b for one in group]).float() * factors
    if form == "panels":
        a, b = pack_a(a), pack_b(b)
    else:
        a, b = (matrices.to(getattr(torch, form)).flatten(1) for matrices in (a, b))
    return zip(a.view(torch.uint8).numpy(), b.view(torch.uint8).numpy(), strict=True)


def _constants(rescale: Rescale | None) -> Iterator[tuple[int, Bytes]]:
    """The place in an entry, and the bytes, of DoRA's factors and constants: float32 in every form."""
    if rescale is not None:
        yield 3, rescale.scale.float().view(torch.uint8).numpy()
    if rescale is not None and rescale.shift is not None:
        yield 4, rescale.shift.float().view(torch.uint8).numpy()


def _whole_lines(num_bytes: int, line: int = 64) -> int:
    """Bytes of a part, up to the next cache line."""
    return -(-num_bytes // line) * line
