"""Prompt tuning, P-tuning and prefix tuning: PEFT trains virtual tokens before the prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
)
from safetensors.torch import save_file
from transformers import PreTrainedModel, Trainer
from transformers.cache_utils import DynamicCache

from adapters.lint.config import MAX_LORA_RANK, check_adapter_config
from config.token_methods import PrefixTuningMethod, PromptTuningMethod, PTuningMethod, VirtualTokenSettings
from config.training import RecipeConfig
from train.data.encode import Encoded
from train.errors import RecipeError, ResumeError
from train.methods.method import Method, ServedAs, Trainable, base_of
from train.runs import last_checkpoint

_ADAPTER = "default"


class VirtualTokens(Method):
    """Virtual tokens; what is saved are their embeddings (or keys and values), without the encoder that made them."""

    def check(self, settings: VirtualTokenSettings) -> None:
        if isinstance(settings, PromptTuningMethod) and (
            (settings.prompt_tuning_init == "TEXT") != (settings.prompt_tuning_init_text is not None)
        ):
            raise RecipeError("`prompt_tuning_init: TEXT` and `prompt_tuning_init_text` belong together. Set both.")

    def check_recipe(self, settings: Any, recipe: RecipeConfig) -> None:
        """Raises:
        RecipeError: Virtual tokens do not go with smoothed labels or packed rows, nor prefixes with checkpointing.
        """
        if recipe.packing:
            raise RecipeError(
                "`recipe.packing` puts several examples into a row, and the virtual tokens of "
                f"`method: {settings.name}` stand before the first one only. Leave it out, or train `method: lora`."
            )
        if recipe.label_smoothing_factor:
            raise RecipeError(
                f"`recipe.label_smoothing_factor: {recipe.label_smoothing_factor}` does not go with `method: "
                f"{settings.name}`, whose virtual tokens have no labels. Set it to 0, or train `method: lora`."
            )
        if isinstance(settings, PrefixTuningMethod) and recipe.gradient_checkpointing is True:
            raise RecipeError(
                "`recipe.gradient_checkpointing: true` does not go with `method: prefix_tuning`, whose keys and values "
                "would be added twice. Set it to false, or train `method: prompt_tuning`."
            )

    def served_as(self, settings: VirtualTokenSettings) -> ServedAs:
        return "virtual tokens"

    def unserved(self, settings: VirtualTokenSettings) -> str:
        config = _peft_config(settings)
        findings = check_adapter_config(
            {
                "peft_type": config.peft_type.value,  # type: ignore[union-attr]  # PEFT's classes set it
                "num_virtual_tokens": settings.num_virtual_tokens,
                "task_type": "CAUSAL_LM",
            },
            max_lora_rank=MAX_LORA_RANK,
        )
        return " ".join(str(finding) for finding in findings if finding.level == "error")

    def peft_config(self, settings: VirtualTokenSettings, model: PreTrainedModel) -> PeftConfig:
        config = _peft_config(settings)
        if isinstance(config, PromptTuningConfig) and config.prompt_tuning_init == "TEXT":
            config.tokenizer_name_or_path = str(model.name_or_path)
        return config

    def set_up(self, settings: VirtualTokenSettings, trainer: Trainer, examples: Sequence[Encoded]) -> None:
        if isinstance(settings, PrefixTuningMethod) and trainer.args.gradient_checkpointing:
            assert isinstance(trainer.model, PeftModel)
            trainer.args.gradient_checkpointing = False
            base_of(trainer.model).gradient_checkpointing_disable()
        if _has_encoder(settings) and last_checkpoint(Path(str(trainer.args.output_dir))) is not None:
            raise ResumeError(
                "PEFT's checkpoints hold the virtual tokens without the encoder that made them, so this run cannot be "
                "resumed. Train without `--resume`."
            )

    def finish(
        self, settings: VirtualTokenSettings, model: Trainable, base_folder: Path, run_folder: Path
    ) -> Trainable:
        assert isinstance(model, PeftModel)
        embedding = _embedding(model)
        if _has_encoder(settings):
            weights = embedding.weight.detach()  # of the best checkpoint, which holds what the encoder gave
        else:
            weights = model.get_prompt_embedding_to_save(_ADAPTER).detach().to(model.device)
        embedding.weight = torch.nn.Parameter(weights)
        model.peft_config[_ADAPTER].inference_mode = True  # PEFT reads the embeddings then, past their encoder
        return model


def _embedding(model: PeftModel) -> torch.nn.Embedding:
    embedding = model.prompt_encoder[_ADAPTER].embedding
    assert isinstance(embedding, torch.nn.Embedding)
    return embedding


def _has_encoder(settings: VirtualTokenSettings) -> bool:
    return isinstance(settings, PTuningMethod) or (
        isinstance(settings, PrefixTuningMethod) and settings.prefix_projection
    )


def save_virtual_tokens(model: PeftModel, folder: Path) -> None:
    """Write PEFT's files deterministically, and without local paths."""
    config = model.peft_config[_ADAPTER]
    if isinstance(config, PromptTuningConfig):
        config.tokenizer_name_or_path = config.base_model_name_or_path if config.tokenizer_name_or_path else None
    weights = _embedding(model).weight.detach().to(torch.bfloat16).cpu().contiguous()
    save_file({"prompt_embeddings": weights}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def virtual_cache(model: Trainable) -> DynamicCache | None:
    """Keys and values of a model's virtual tokens; None if it has none, or they are switched off."""
    if virtual_tokens_off(model):
        return None
    assert isinstance(model, PeftModel)
    config = model.peft_config[_ADAPTER]
    prompt: Any = model.get_prompt(batch_size=1)
    if isinstance(config, PrefixTuningConfig):
        assert isinstance(prompt, DynamicCache)
        return prompt
    cache = base_of(model)(inputs_embeds=prompt.to(base_of(model).dtype), use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    return cache


def virtual_tokens_off(model: Trainable) -> bool:
    """Whether a model has no virtual tokens, or they are switched off."""
    if not isinstance(model, PeftModel) or not model.peft_config[_ADAPTER].is_prompt_learning:
        return True
    return bool(model.forward == base_of(model).forward)  # what PEFT's `disable_adapter` does


def _peft_config(settings: VirtualTokenSettings) -> PromptLearningConfig:
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": settings.num_virtual_tokens}
    keys = settings.model_dump(exclude={"name", "num_virtual_tokens"}, exclude_none=True) | common
    match settings:
        case PromptTuningMethod():
            return PromptTuningConfig(**keys)
        case PTuningMethod():
            return PromptEncoderConfig(**keys)
        case PrefixTuningMethod():
            return PrefixTuningConfig(**keys)
    raise AssertionError(settings)
