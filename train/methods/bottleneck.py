"""Bottleneck layers (Houlsby, Pfeiffer), for evaluation only: an engine's model has no place for them.

Each is `y + up(f(down(y)))` on the output of a decoder layer's attention or feed-forward part.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors.torch import save_file
from transformers import PreTrainedModel, Trainer
from transformers.activations import ACT2FN

from config.token_methods import BottleneckMethod
from train.data.encode import Encoded
from train.errors import RecipeError
from train.methods.method import Method, ServedAs, Trainable

NAME = "bottleneck"
_ATTENTION = ("self_attn", "attention", "attn")
_FEED_FORWARD = ("mlp", "feed_forward")
_WHY = (
    "`method: bottleneck` adds layers of its own between those of the base, and an engine computes the base's layers "
    "only. `method: lora` is the nearest that is served: the same idea, inside the layers."
)


class Bottleneck(torch.nn.Module):
    """Starts as zero, so the model starts as the base."""

    def __init__(self, width: int, settings: BottleneckMethod) -> None:
        super().__init__()
        inner = max(1, width // settings.reduction_factor)
        self.down, self.up = torch.nn.Linear(width, inner), torch.nn.Linear(inner, width)
        self.activation = ACT2FN[settings.non_linearity]
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.up(self.activation(self.down(y.to(self.down.weight.dtype))))
        return y + change.to(y.dtype)


class BottleneckLayers(Method):
    """Houlsby: after attention and feed-forward. Pfeiffer: after feed-forward."""

    def served_as(self, settings: BottleneckMethod) -> ServedAs:
        return "not served"

    def unserved(self, settings: BottleneckMethod) -> str:
        return _WHY

    def peft_config(self, settings: BottleneckMethod, model: PreTrainedModel) -> None:
        return None

    def prepare(
        self, settings: BottleneckMethod, model: PreTrainedModel, config: PeftConfig | None, examples: Sequence[Encoded]
    ) -> None:
        model.requires_grad_(False)
        parts = _FEED_FORWARD + (_ATTENTION if settings.architecture == "houlsby" else ())
        found = [module for name, module in model.named_modules() if name.rpartition(".")[2] in parts]
        if not found:
            raise RecipeError(f"`method: bottleneck` finds no module named {', '.join(parts)} in the base.")
        for module in found:
            module.add_module(NAME, Bottleneck(model.config.get_text_config().hidden_size, settings))
            module.register_forward_hook(_add)

    def set_up(self, settings: BottleneckMethod, trainer: Trainer, examples: Sequence[Encoded]) -> None:
        if trainer.is_fsdp_enabled:
            raise RecipeError(
                "`method: bottleneck` cannot be trained in shards (FSDP). Launch it with config/accelerate/ddp.yaml."
            )


def save_bottleneck(model: Trainable, folder: Path, base_name: str, settings: BottleneckMethod) -> None:
    """Write the added layers, and the settings by which they are built."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if f".{NAME}." in name}
    save_file(weights, folder / "adapter_model.safetensors")
    config = settings.model_dump(mode="json", exclude={"name"})
    config |= {"peft_type": "BOTTLENECK", "base_model_name_or_path": base_name}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _add(module: torch.nn.Module, args: object, output: Any) -> Any:
    added = module.get_submodule(NAME)
    return (added(output[0]), *output[1:]) if isinstance(output, tuple) else added(output)
