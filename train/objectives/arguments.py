"""The arguments that all of TRL's trainers take, from a domain's recipe; checked before the base is loaded."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, get_scheduler

from adapters.store.manifest import ComputeRecord
from config.memory import free_memory_bytes
from config.training import RecipeConfig
from train.errors import RecipeError

CUDA_OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "paged_lion_8bit")
_MAX_ACTIVATIONS = 0.5
"""Share of the free memory that activations may take without being computed twice."""


def shared_arguments(
    recipe: RecipeConfig, run_folder: Path, compute: ComputeRecord, model: PreTrainedModel | PeftModel
) -> dict[str, Any]:
    """Keyword arguments of every TRL configuration; an objective adds its own."""
    has_cuda = torch.cuda.is_available()
    eval_steps = min(recipe.eval_steps, recipe.max_steps)
    is_loss = recipe.metric_for_best_model == "eval_loss"
    return {
        "output_dir": str(run_folder),
        "learning_rate": recipe.learning_rate,
        "optim": optimizer_of(recipe),
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "lr_scheduler_kwargs": recipe.lr_scheduler_kwargs,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "neftune_noise_alpha": recipe.neftune_noise_alpha,
        "label_smoothing_factor": recipe.label_smoothing_factor,
        "max_steps": recipe.max_steps,
        "per_device_train_batch_size": recipe.per_device_train_batch_size,
        "per_device_eval_batch_size": recipe.per_device_train_batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "gradient_checkpointing": is_checkpointed(recipe, model),
        "eval_strategy": "steps",
        "eval_steps": eval_steps,
        "save_strategy": "steps",
        "save_steps": eval_steps,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss" if is_loss else f"eval_{recipe.metric_for_best_model}",
        "greater_is_better": not is_loss,
        # A resumed run counts the evaluations without a better result on from where it stopped.
        "restore_callback_states_from_checkpoint": True,
        # Each step's own loss and gradient norm, unfiltered: see `train.divergence`.
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": [],
        "bf16": compute.precision != "float32",
        "use_cpu": not has_cuda,
        "dataloader_pin_memory": has_cuda,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
    }


def optimizer_of(recipe: RecipeConfig) -> str:
    if recipe.optim != "auto":
        return recipe.optim
    return "paged_adamw_8bit" if torch.cuda.is_available() else "adamw_torch_fused"


def check_arguments(recipe: RecipeConfig) -> None:
    """Refuse what the recipe's own types cannot tell, before the base is loaded.

    Raises:
        RecipeError: The optimizer needs a GPU, or the schedule does not take its settings.
    """
    if recipe.optim in CUDA_OPTIMIZERS and not torch.cuda.is_available():
        raise RecipeError(
            f"`recipe.optim: {recipe.optim}` requires a CUDA GPU, and there is none. Use `auto` or adamw_torch_fused."
        )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], recipe.learning_rate)
    try:
        get_scheduler(
            recipe.lr_scheduler_type,
            optimizer,
            num_warmup_steps=0,
            num_training_steps=recipe.max_steps,
            scheduler_specific_kwargs=dict(recipe.lr_scheduler_kwargs),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise RecipeError(
            f"`recipe.lr_scheduler_type: {recipe.lr_scheduler_type}` cannot be used with "
            f"`recipe.lr_scheduler_kwargs` {recipe.lr_scheduler_kwargs!r}: {error}. "
            "See transformers' documentation of this schedule for its settings."
        ) from None


def is_checkpointed(recipe: RecipeConfig, model: PreTrainedModel | PeftModel) -> bool:
    """Whether activations are computed twice: as set, else if they would take too much of the free memory."""
    if recipe.gradient_checkpointing != "auto":
        return recipe.gradient_checkpointing
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory_bytes()
    return activation_bytes(recipe, model) > _MAX_ACTIVATIONS * free


def activation_bytes(recipe: RecipeConfig, model: PreTrainedModel | PeftModel) -> int:
    """Upper estimate of what the backward pass keeps of a batch of the longest examples."""
    config = model.config.get_text_config()
    num_tokens = recipe.per_device_train_batch_size * recipe.max_length
    hidden: int = config.hidden_size
    inner: int = getattr(config, "intermediate_size", None) or 4 * hidden
    # Of a layer: the inputs of its products, norms and residual sums; then the logits, in float32 with their gradient.
    per_token: int = config.num_hidden_layers * (12 * hidden + 4 * inner) * model.dtype.itemsize
    logits: int = 8 * config.vocab_size
    return num_tokens * (per_token + logits)
