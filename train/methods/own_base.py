"""Methods whose result is a base of its own: all weights trained, or an adapter merged into them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from adapters.store.manifest import BaseManifest
from train.data.encode import Encoded
from train.errors import RecipeError
from train.methods.method import Method, ServedAs, Trainable
from train.methods.targets import named, resolve_target_modules
from train.rounding import round_weights


class OwnBase(Method):
    """What all of them have in common."""

    def served_as(self, settings: Any) -> ServedAs:
        return "a base of its own"

    def check_base(self, settings: Any, base: BaseManifest) -> None:
        if base.storage == "bitsandbytes":
            raise RecipeError(
                f"`method: {settings.name}` changes the base's own weights, and base {base.name!r} stores bitsandbytes "
                "tensors. Prepare it with `--storage dequantized`, or train `method: lora` on it."
            )


class Full(OwnBase):
    """All weights are trained, in float32."""

    def changes_base(self, settings: Any) -> bool:
        return True

    def peft_config(self, settings: Any, model: PreTrainedModel) -> None:
        return None

    def prepare(
        self, settings: Any, model: PreTrainedModel, config: PeftConfig | None, examples: Sequence[Encoded]
    ) -> None:
        model.float()

    def finish(self, settings: Any, model: Trainable, base_folder: Path, run_folder: Path) -> PreTrainedModel:
        assert isinstance(model, PreTrainedModel)
        round_weights(model)
        return model


class Merged(OwnBase):
    """An adapter that scales or rotates; merged in float32, then rounded."""

    def __init__(self, config_class: Callable[..., PeftConfig]) -> None:
        self._config_class = config_class

    def peft_config(self, settings: Any, model: PreTrainedModel) -> PeftConfig:
        keys = settings.model_dump(exclude={"name", "target_modules"}, exclude_none=True)
        keys = {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items()}
        targets = resolve_target_modules(model, settings.target_modules)
        if unknown := sorted(set(named(keys.get("feedforward_modules", ()))) - set(targets)):
            raise RecipeError(f"feedforward_modules has {unknown!r}, which target_modules lacks: {targets!r}.")
        return self._config_class(**keys, target_modules=targets, task_type="CAUSAL_LM")

    def finish(self, settings: Any, model: Trainable, base_folder: Path, run_folder: Path) -> PreTrainedModel:
        assert isinstance(model, PeftModel)
        merged = model.float().merge_and_unload(safe_merge=True)
        assert isinstance(merged, PreTrainedModel)
        round_weights(merged)
        return merged


def own_base_methods() -> dict[str, Method]:
    return {
        "full": Full(),
        "ia3": Merged(peft.IA3Config),
        "oft": Merged(peft.OFTConfig),
        "boft": Merged(peft.BOFTConfig),
    }
