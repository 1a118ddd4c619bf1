"""A plain LoRA made of given factors, on the unchanged base."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from train.base.quantize import load_causal_lm

ADAPTER = "default"


@dataclass(frozen=True)
class Factors:
    """The change of one layer, B A.

    Attributes:
        lora_a: (rank, in_features)
        lora_b: (out_features, rank)
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor

    @property
    def rank(self) -> int:
        return self.lora_a.shape[0]


def lora_on_base(base_folder: Path, factors: Mapping[str, Factors]) -> PeftModel:
    """A LoRA with these factors and a scaling of one; each layer has its own rank.

    Args:
        factors: By the layer's full name in the base.
    """
    model = load_causal_lm(base_folder)
    rank = max(each.rank for each in factors.values())
    ranks = {re.escape(name): each.rank for name, each in factors.items() if each.rank != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=_targets(model, factors),
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    with torch.no_grad():
        for name, layer in lora_layers(adapted):
            lora_a, lora_b = trained_factors(layer)
            lora_a.copy_(factors[name].lora_a)
            lora_b.copy_(factors[name].lora_b)
    return adapted


def lora_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """Linear layers with LoRA, by full name in the base."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def trained_factors(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B, sharing memory with the layer's."""
    lora_a, lora_b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    assert isinstance(lora_a, torch.Tensor)
    assert isinstance(lora_b, torch.Tensor)
    return lora_a.detach(), lora_b.detach()


def _targets(model: torch.nn.Module, factors: Mapping[str, Factors]) -> list[str]:
    """Short names if those layers have factors everywhere in the base, else full names."""
    short = {name.rpartition(".")[2] for name in factors}
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    everywhere = {name for name in linear if name.rpartition(".")[2] in short}
    return sorted(short if everywhere == set(factors) else factors)
