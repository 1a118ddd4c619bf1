"""Check of a recipe before training: settings that PEFT cannot build or vLLM cannot serve."""

from collections.abc import Sequence

import torch
from peft import LoraConfig

from adapters.lint.config import MAX_LORA_RANK, check_adapter_config
from config.domain import RecipeConfig
from train.errors import RecipeError

# TRL multiplies by `lm_head.weight` itself, and embeddings are not linear layers.
_UNTRAINED = ("lm_head", "embed_tokens", "embed_out", "wte")


def check_recipe(recipe: RecipeConfig) -> None:
    """Reject a recipe whose adapter could be trained but not served.

    Raises:
        RecipeError: Lists every problem and its fix.
    """
    findings = check_adapter_config(
        {
            "peft_type": "LORA",
            "r": recipe.lora_r,
            "lora_alpha": recipe.lora_alpha,
            "use_rslora": recipe.use_rslora,
            "init_lora_weights": recipe.init_lora_weights,
        },
        max_lora_rank=MAX_LORA_RANK,
    )
    problems = [str(finding) for finding in findings if finding.level == "error"]
    if untrained := sorted(set(_named(recipe.target_modules)) & set(_UNTRAINED)):
        problems.append(f"target_modules has {untrained!r}, which cannot be trained. Leave it out.")
    if problems:
        raise RecipeError("This recipe cannot be used: " + " ".join(problems))


def lora_config(recipe: RecipeConfig, model: torch.nn.Module) -> LoraConfig:
    """PEFT's configuration, with short names of target modules (`q_proj`).

    Raises:
        RecipeError: The base lacks a target module.
    """
    return LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=resolve_target_modules(model, recipe.target_modules),
        use_rslora=recipe.use_rslora,
        init_lora_weights=recipe.init_lora_weights,  # type: ignore[arg-type]  # a string is checked by PEFT
        bias="none",
        task_type="CAUSAL_LM",
    )


def resolve_target_modules(model: torch.nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Sorted short names; `all-linear` means every linear layer except the output layer.

    Raises:
        RecipeError: A name that is not the end of any linear layer's name.
    """
    linear = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    } - set(_UNTRAINED)
    if wanted == "all-linear":
        return sorted(linear)
    names = set(_named(wanted))
    if unknown := sorted(names - linear):
        raise RecipeError(
            f"target_modules has {unknown!r}, but the base's linear layers are {sorted(linear)!r}. "
            "Name those, or write `all-linear`."
        )
    return sorted(names)


def _named(target_modules: str | Sequence[str]) -> tuple[str, ...]:
    return (target_modules,) if isinstance(target_modules, str) else tuple(target_modules)
