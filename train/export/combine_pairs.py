"""Weighted combinations of LoRA pairs by PEFT's functions, layer by layer in float32."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, task_arithmetic, ties
from torch import Tensor

from adapters.store.manifest import CombineMethod
from train.errors import ExportError
from train.export.version import LoraPair

SEED = 0  # of dare, which drops random numbers
_RANK_KEEPING = ("linear", "ties", "dare_linear", "dare_ties")


@dataclass(frozen=True)
class Weighted:
    """The LoRA pairs of one version by layer, and its weight."""

    name: str
    pairs: Mapping[str, LoraPair]
    weight: float

    @property
    def rank(self) -> int:
        return max(len(pair.lora_a) for pair in self.pairs.values())


def combined_rank(parts: Sequence[Weighted], method: CombineMethod) -> int:
    """Rank of the combination: the sum for `cat`, otherwise the largest.

    Raises:
        ExportError: The method adds A to A and B to B, but a layer has several ranks.
    """
    if method == "cat":
        return sum(part.rank for part in parts)
    if method in _RANK_KEEPING:
        for layer in _layers(parts):
            ranks = {part.name: len(part.pairs[layer].lora_a) for part in parts if layer in part.pairs}
            if len(set(ranks.values())) > 1:
                raise ExportError(
                    f"{method} needs equal ranks; {layer!r} has {ranks}. Use `--method svd` or `--method cat`."
                )
    return max(part.rank for part in parts)


def combine(parts: Sequence[Weighted], method: CombineMethod, density: float) -> dict[str, LoraPair]:
    """The combination's pairs by layer, with scaling 1; a layer that only some parts have is combined of those.

    Args:
        density: Share of the numbers that `ties` and `dare` keep.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return {layer: _combine_layer(layer, parts, method, density) for layer in _layers(parts)}


def _combine_layer(layer: str, parts: Sequence[Weighted], method: CombineMethod, density: float) -> LoraPair:
    found = [(part.pairs[layer], part.weight) for part in parts if layer in part.pairs]
    first = found[0][0]
    rank = max(len(pair.lora_a) for pair, _ in found)
    if method == "cat":
        lora_a, lora_b = _concatenated(found)
    elif method == "svd":
        lora_a, lora_b = _reduced(*_concatenated(found), rank)
    else:
        lora_a, lora_b = _added(found, _adders(density)[method])
    return LoraPair(layer, lora_a, lora_b, 1.0, first.is_transposed, first.is_embedding)


def _layers(parts: Sequence[Weighted]) -> list[str]:
    return sorted({layer for part in parts for layer in part.pairs})


def _adders(density: float) -> dict[str, Callable[[list[Tensor], Tensor], Tensor]]:
    return {
        "linear": task_arithmetic,
        "ties": partial(ties, density=density),
        "dare_linear": partial(dare_linear, density=density),
        "dare_ties": partial(dare_ties, density=density),
    }


def _added(
    found: Sequence[tuple[LoraPair, float]], add: Callable[[list[Tensor], Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """A of A's and B of B's, each with the root of its weight; A has the sign."""
    weights = [pair.scaling * weight for pair, weight in found]
    of_a = torch.tensor([math.copysign(math.sqrt(abs(weight)), weight) for weight in weights])
    return add([pair.lora_a for pair, _ in found], of_a), add([pair.lora_b for pair, _ in found], of_a.abs())


def _concatenated(found: Sequence[tuple[LoraPair, float]]) -> tuple[Tensor, Tensor]:
    """The exact weighted sum; its rank is the sum of the ranks."""
    lora_a = torch.cat([pair.lora_a * (pair.scaling * weight) for pair, weight in found], dim=0)
    return lora_a, torch.cat([pair.lora_b for pair, _ in found], dim=1)


def _reduced(lora_a: Tensor, lora_b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of B A with a lower rank, without computing B A."""
    left, core_b = torch.linalg.qr(lora_b)
    right, core_a = torch.linalg.qr(lora_a.T)
    u, s, vh = torch.linalg.svd(core_b @ core_a.T)
    return vh[:rank] @ right.T, left @ (u[:, :rank] * s[:rank])
