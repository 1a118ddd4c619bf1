"""`from: medical@3`: the published version that training starts from; `reward_model`: the one that scores."""

from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from adapters.store.manifest import BaseManifest, LoraSpec, Manifest
from adapters.store.store import AdapterStore
from config.method import LoraMethod
from config.training import TrainingConfig
from train.errors import RecipeError
from train.evaluate.preference import REFERENCE_ADAPTER
from train.methods.method import Trainable
from train.objectives.objective import StoredVersion


def stored_version(store: AdapterStore, reference: str, base: BaseManifest) -> StoredVersion:
    """A published version of this base.

    Raises:
        AdapterNotFoundError: There is none.
        IntegrityError: Its files changed.
        RecipeError: It was trained on another base.
    """
    target = store.resolve(reference)
    manifest = store.verify(target)
    if manifest.base.digest != base.digest:
        raise RecipeError(
            f"{reference!r} was trained on the base {manifest.base.name!r} ({manifest.base.digest[:12]}), but "
            f"`base` is {base.name!r} ({base.digest[:12]}). Name a version of this base, or change `base`."
        )
    return StoredVersion(manifest, store.folder(target))


def check_start(config: TrainingConfig, start: Manifest) -> None:
    """Check that training can continue with a version's adapter.

    Raises:
        RecipeError: The objective starts from the base alone, or the version has another method, rank or layers.
    """
    if config.objective.name == "reward":
        raise RecipeError("`objective: reward` starts from the base: leave `from` out.")
    if start.lora.task == "SEQ_CLS":
        raise RecipeError(f"`from` names the reward model {start.lora_name!r}, which gives scores and no answers.")
    method = config.method
    if not isinstance(method, LoraMethod) or start.lora.peft_type != "LORA":
        raise RecipeError(
            f"`from` continues a LoRA; `method` is {method.name!r}, and {start.lora_name!r} is {start.lora.peft_type}. "
            "Use `method: lora`, or leave `from` out."
        )
    if wrong := _differences(method, start.lora):
        raise RecipeError(
            f"`from` continues the adapter {start.lora_name!r} as it is, but `method` differs: {'; '.join(wrong)}. "
            "Set it to the version's."
        )


def check_reward_model(version: Manifest) -> None:
    """Check that a version scores answers.

    Raises:
        RecipeError: It gives answers itself.
    """
    if version.lora.task != "SEQ_CLS":
        raise RecipeError(
            f"`objective.reward_model` names {version.lora_name!r}, which gives answers and no scores. Name a version "
            "of `objective: reward`, or leave `reward_model` out."
        )


def _differences(method: LoraMethod, lora: LoraSpec) -> list[str]:
    wanted: dict[str, tuple[object, object]] = {
        "r": (method.r, lora.lora_r),
        "lora_alpha": (method.lora_alpha, lora.lora_alpha),
        "use_rslora": (method.use_rslora, lora.use_rslora),
    }
    if method.target_modules != "all-linear":
        named = method.target_modules
        modules = sorted({named} if isinstance(named, str) else set(named))
        wanted["target_modules"] = (modules, sorted(lora.target_modules))
    return [f"{key} is {own!r}, the version's {theirs!r}" for key, (own, theirs) in wanted.items() if own != theirs]


def with_adapter_of(model: PreTrainedModel, start: StoredVersion) -> PeftModel:
    """The base with the version's adapter, trainable."""
    name_or_path = model.name_or_path
    adapted = PeftModel.from_pretrained(model, str(start.folder), is_trainable=True)
    # Checkpoints look there for the base; the version holds its name, which PEFT would look up on a hub.
    adapted.peft_config["default"].base_model_name_or_path = name_or_path
    return adapted


class ResumesBesideReference(Trainer):
    """For trainers of TRL with a frozen copy of the adapter.

    transformers 5.19 loads from a checkpoint with several adapters only those in subfolders, so the copy, and not the
    adapter that is trained.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        trained = self.model if model is None else model
        if isinstance(trained, PeftModel) and REFERENCE_ADAPTER in trained.peft_config:
            trained.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            trained.set_adapter("default")


def drop_reference(model: Trainable) -> None:
    """Remove the frozen copy of the adapter that training started from."""
    if isinstance(model, PeftModel) and REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)
