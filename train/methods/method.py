"""What each method does around a run: the check before it, PEFT's configuration, the initialisation, the result.

A run calls a method in this order: `check`, `unserved` and `check_base` before the model loads, `peft_config` and
`prepare` before the trainer wraps the model, `set_up` with the trainer, and `finish` with the trained model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, Trainer

from adapters.store.manifest import BaseManifest
from train.data.encode import Encoded

ServedAs = Literal["LoRA", "DoRA", "converted to LoRA", "a base of its own", "virtual tokens", "not served"]
Trainable = PeftModel | PreTrainedModel
"""A model with an adapter, or one whose own weights are trained."""


def base_of(model: Trainable) -> PreTrainedModel:
    """The base, with an adapter's layers in it, if any."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


class Method:
    """One method; `settings` are those of its name in `config/method.py`."""

    def check(self, settings: Any) -> None:
        """Refuse settings that cannot be trained.

        Raises:
            RecipeError: Lists every problem and its fix.
        """

    def served_as(self, settings: Any) -> ServedAs:
        raise NotImplementedError

    def unserved(self, settings: Any) -> str:
        """Why the version could not be served, and what can, in one line; "" if it can be served."""
        return ""

    def check_base(self, settings: Any, base: BaseManifest) -> None:
        """Refuse a base that the method cannot train.

        Raises:
            RecipeError: With the next step.
        """

    def changes_base(self, settings: Any) -> bool:
        """Whether training computes with changed weights of the base, which bf16 would round: float32 is used."""
        return False

    def needs_examples(self, settings: Any) -> bool:
        """Whether the initialisation runs training examples: `objective: sft` or `text`."""
        return False

    def peft_config(self, settings: Any, model: PreTrainedModel) -> PeftConfig | None:
        """PEFT's configuration, with short names of target modules (`q_proj`); None: PEFT takes no part.

        Raises:
            RecipeError: The base lacks a target module.
        """
        raise NotImplementedError

    def prepare(
        self, settings: Any, model: PreTrainedModel, config: PeftConfig | None, examples: Sequence[Encoded]
    ) -> None:
        """Before the trainer wraps the model: what an initialisation computes from training examples.

        Args:
            examples: Encoded training rows.
        """

    def set_up(self, settings: Any, trainer: Trainer, examples: Sequence[Encoded]) -> None:
        """With the trainer, before its first step, and before the checkpoint of an interrupted run is loaded."""

    def finish(self, settings: Any, model: Trainable, base_folder: Path, run_folder: Path) -> Trainable:
        """The trained model as it is served; it is what is evaluated, fingerprinted and saved."""
        return model
