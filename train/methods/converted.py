"""Methods that add something else than LoRA's factors to a layer's weights; their sum is served as a LoRA.

Never for DoRA: PEFT's conversion accepts it, and leaves its magnitude out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig, PeftModel, convert_to_lora
from transformers import PreTrainedModel

from adapters.lint.config import MAX_LORA_RANK
from adapters.store.manifest import BaseManifest
from config.converted_methods import ConvertedSettings
from train.errors import RecipeError
from train.methods.factors import Factors, lora_on_base
from train.methods.method import Method, ServedAs, Trainable
from train.methods.targets import VOCABULARY, named, resolve_target_modules

_SIDES = (".lora_A.weight", ".lora_B.weight")
_OURS = {"name", "target_modules", "convert_rank", "max_conversion_error"}


class Converted(Method):
    """Trained by PEFT; saved as the LoRA that is nearest to it."""

    def __init__(self, config_class: Callable[..., PeftConfig], **fixed: Any) -> None:
        """`fixed`: keys of PEFT's configuration that no setting changes."""
        self._config_class, self._fixed = config_class, fixed

    def check(self, settings: ConvertedSettings) -> None:
        if untrained := sorted(set(named(settings.target_modules)) & set(VOCABULARY)):
            raise RecipeError(f"target_modules has {untrained!r}; only linear layers can be converted. Leave it out.")

    def served_as(self, settings: ConvertedSettings) -> ServedAs:
        return "converted to LoRA"

    def unserved(self, settings: ConvertedSettings) -> str:
        rank = settings.convert_rank
        if isinstance(rank, int) and rank > MAX_LORA_RANK:
            return f"convert_rank is {rank}; the highest rank that is served is {MAX_LORA_RANK}. Set it to that."
        return ""

    def check_base(self, settings: ConvertedSettings, base: BaseManifest) -> None:
        if base.storage == "bitsandbytes":
            raise RecipeError(
                f"`method: {settings.name}` needs the base's weights as numbers, and base {base.name!r} stores "  # type: ignore[attr-defined]  # every method has a name
                "bitsandbytes tensors. Prepare it with `--storage dequantized`."
            )

    def peft_config(self, settings: ConvertedSettings, model: PreTrainedModel) -> PeftConfig:
        keys = settings.model_dump(exclude=_OURS, exclude_none=True)
        layers = settings.layers_to_transform
        if layers is not None:
            keys["layers_to_transform"] = list(layers) if isinstance(layers, tuple) else layers
        targets = resolve_target_modules(model, settings.target_modules)
        return self._config_class(**keys, **self._fixed, target_modules=targets, task_type="CAUSAL_LM")

    def finish(self, settings: ConvertedSettings, model: Trainable, base_folder: Path, run_folder: Path) -> PeftModel:
        assert isinstance(model, PeftModel)
        wanted = settings.convert_rank
        share = wanted if isinstance(wanted, float) else 1.0
        most = MAX_LORA_RANK if isinstance(wanted, float) else wanted
        _, tensors = convert_to_lora(model.float(), rank=share)
        return lora_on_base(base_folder, _cut(tensors, most))


def _cut(tensors: dict[str, Any], rank: int) -> dict[str, Factors]:
    """PEFT's factors by layer, with the largest singular values only: they come first."""
    names = [name.removesuffix(_SIDES[0]) for name in tensors if name.endswith(_SIDES[0])]
    return {
        name.removeprefix("base_model.model."): Factors(
            tensors[name + _SIDES[0]][:rank], tensors[name + _SIDES[1]][:, :rank]
        )
        for name in names
    }


def converted_methods() -> dict[str, Method]:
    return {
        "vera": Converted(peft.VeraConfig),
        "loha": Converted(peft.LoHaConfig),
        "lokr": Converted(peft.LoKrConfig),
        "delora": Converted(peft.DeloraConfig),
        "fourierft": Converted(peft.FourierFTConfig),
        "randlora": Converted(peft.RandLoraConfig),
        "miss": Converted(peft.MissConfig),
        "c3a": Converted(peft.C3AConfig),
        "gralora": Converted(peft.GraloraConfig),
        "waveft": Converted(peft.WaveFTConfig),
        "vblora": Converted(peft.VBLoRAConfig),
        "psoft": Converted(peft.PsoftConfig),
        "unilora": Converted(peft.UniLoraConfig),
        "tinylora": Converted(peft.TinyLoraConfig),
    }
