"""PiSSA, OLoRA, CorDA and LoRA-GA: their initial factors, and the LoRA on the unchanged base that they end as.

They take the initial factors out of the base's weights: the model computes with W - s B0 A0 + s B A. On the unchanged
base that is a LoRA of twice the rank: s (B A - B0 A0). PEFT writes it as [B, -B0] and [A, A0], so rounding to bf16 is
relative to B0 A0, the main part of the base's weights. Here the difference itself is factorised: rounding is relative
to what training changed.
"""

import os
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from train.methods.factors import ADAPTER, Factors, lora_layers, lora_on_base, trained_factors

INITIAL_FILE = "initial_factors.safetensors"


def keep_initial_factors(model: PeftModel, run_folder: Path) -> None:
    """Write them into the run's folder; in a resumed run, correct the base's weights to those of the first start."""
    path = run_folder / INITIAL_FILE
    if path.is_file():
        _restore(model, load_file(path))
        return
    tensors = {}
    for name, layer in lora_layers(model):
        lora_a, lora_b = trained_factors(layer)
        tensors[f"{name}.A"], tensors[f"{name}.B"] = lora_a.float().cpu(), lora_b.float().cpu()
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def converted_to_lora(model: PeftModel, base_folder: Path, run_folder: Path) -> PeftModel:
    """The trained model as a LoRA of at most twice the rank, on the unchanged base."""
    initial = load_file(run_folder / INITIAL_FILE)
    factors = {}
    for name, layer in lora_layers(model):
        scaling = layer.scaling[ADAPTER]
        lora_a, lora_b = (factor.double().cpu() for factor in trained_factors(layer))
        factors[name] = balanced(
            torch.cat([lora_a, initial[f"{name}.A"].double()]),
            torch.cat([lora_b, -initial[f"{name}.B"].double()], dim=1) * scaling,
        )
    return lora_on_base(base_folder, factors)


def balanced(lora_a: torch.Tensor, lora_b: torch.Tensor) -> Factors:
    """The same product by its singular vectors, each half of the singular values in one factor."""
    left, core_left = torch.linalg.qr(lora_b)
    right, core_right = torch.linalg.qr(lora_a.T)
    u, values, vh = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    root = values.sqrt()
    return Factors((root[:, None] * vh) @ right.T, (left @ u) * root)


@torch.no_grad()
def _restore(model: PeftModel, initial: dict[str, torch.Tensor]) -> None:
    for name, layer in lora_layers(model):
        found_a, found_b = trained_factors(layer)
        kept_a, kept_b = initial[f"{name}.A"].to(found_a), initial[f"{name}.B"].to(found_b)
        if torch.equal(found_a, kept_a) and torch.equal(found_b, kept_b):
            continue
        change = layer.scaling[ADAPTER] * (found_b @ found_a - kept_b @ kept_a)
        weight = layer.get_base_layer().weight
        assert isinstance(weight, torch.Tensor)
        weight.add_(change.to(weight.dtype))
