"""Supervised fine-tuning of one LoRA adapter on a prepared base, with TRL's trainer."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from adapters.store.manifest import BaseManifest, ComputeRecord, TrainingRecord
from config.dataset import DatasetManifest, DatasetRow, Split
from config.domain import DomainConfig, RecipeConfig
from config.progress import Progress, shown
from train.attention import grouped_attention_of
from train.base.prepare import library_versions
from train.base.quantize import load_causal_lm
from train.compute import Shape, compute_in, measure_training, set_precision
from train.data.encode import Encoded
from train.data.sequences import check_held_out, encode_rows
from train.data.template import names_time, row_times, run_time
from train.errors import ResumeError
from train.lora_linear import fuse_lora
from train.methods.recipe import lora_config
from train.objectives.answer_loss import AnswerLossTrainer
from train.progress import TrainingProgress
from train.runs import (
    is_run_of,
    last_checkpoint,
    read_compute,
    read_template_time,
    run_key,
    start_run,
    write_compute,
    write_template_time,
)

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
TRAINED_SPLITS: tuple[Split, ...] = ("train", "validation")
ADAPTER_NAME = "default"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A trained adapter on its base, in memory; its weights are rounded to bf16, as they are saved and served.

    Attributes:
        template_time: The time passed to the chat template in evaluation and in the fingerprint.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    record: TrainingRecord
    template_time: datetime


def train_adapter(
    config: DomainConfig,
    base: BaseManifest,
    base_folder: Path,
    dataset: DatasetManifest,
    rows: Mapping[Split, list[DatasetRow]],
    run_folder: Path,
    *,
    resume: bool = False,
    compute: ComputeRecord | None = None,
    console: Console | None = None,
    today: Callable[[], date] = date.today,
) -> Trained:
    """Train one adapter; the returned model has the weights with the best held-out loss.

    Args:
        compute: Precision and threads; None: those of the interrupted run, otherwise the fastest on this machine.
        today: Date of a new run.

    Raises:
        RecipeError: The base lacks a target module.
        ResumeError: `resume` without a checkpoint of this base, data set and recipe.
        DataError: Rows cannot be encoded with the base's chat template, in `max_length` tokens.
    """
    checkpoint = _prepare_run(run_folder, run_key(config.recipe, base, dataset), resume=resume)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    at = read_template_time(run_folder) or run_time(config.recipe, today())
    write_template_time(run_folder, at)
    encoded = {
        split: encode_rows(tokenizer, rows[split], config, times)
        for split in TRAINED_SPLITS
        for times in [row_times(config.recipe, at, len(rows[split]), split)]
    }
    check_held_out(tokenizer, rows.get("test", []), config, at)
    model = load_causal_lm(base_folder)
    compute = compute or read_compute(run_folder) or measure_compute(model, config.recipe, encoded["train"])
    write_compute(run_folder, compute)
    compute_in(model, compute)
    set_seed(config.recipe.seed)
    trainer = make_trainer(config.recipe, model, tokenizer, encoded, run_folder, compute)
    started = time.monotonic()
    output = _run(trainer, config.name, checkpoint, console)
    duration_s = time.monotonic() - started
    trained = trainer.model
    assert isinstance(trained, PeftModel)
    cast_model(trained, compute)
    trained.eval()
    record = TrainingRecord(
        arguments=config.recipe.model_dump(mode="json"),
        metrics=_metrics(trainer, output.training_loss),
        duration_s=round(duration_s, 1),
        device=_device_name(),
        libraries=library_versions(*LIBRARIES),
        compute=compute,
        template_time=at if names_time(tokenizer) else None,
    )
    logger.info("%s trained in %.0f s, held-out loss %.3f", config.name, duration_s, record.metrics["eval_loss"])
    return Trained(trained, tokenizer, record, at)


def cast_model(model: PeftModel, compute: ComputeRecord) -> None:
    """Round the LoRA weights to bf16, so that evaluation uses the same weights as the saved adapter and vLLM."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    set_precision(model, "float32" if compute.precision == "float32" else "bfloat16")


def save_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write PEFT's files deterministically, and without local paths."""
    model.peft_config[ADAPTER_NAME].base_model_name_or_path = base_name
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items() if "lora_" in name}
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # PEFT keeps a set, whose order changes from process to process.
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _prepare_run(folder: Path, key: str, *, resume: bool) -> str | None:
    """Create a new run folder, or find the last checkpoint of an interrupted run."""
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
        start_run(folder, key)
        return None
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        raise ResumeError(f"No checkpoint found for {folder.name!r} to resume. Train without `--resume`.")
    if not is_run_of(folder, key):
        raise ResumeError(
            f"The checkpoint of {folder.name!r} belongs to another base, data set or recipe. "
            "Restore those, or train without `--resume`."
        )
    return str(checkpoint)


def measure_compute(model: PreTrainedModel, recipe: RecipeConfig, examples: Sequence[Encoded]) -> ComputeRecord:
    """Choose for batches of median length."""
    num_tokens = sorted(map(len, examples))[len(examples) // 2]
    return measure_training(model, lora_config(recipe, model), Shape(recipe.per_device_train_batch_size, num_tokens))


def make_trainer(
    recipe: RecipeConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Mapping[Split, list[Encoded]],
    run_folder: Path,
    compute: ComputeRecord,
) -> SFTTrainer:
    """Create the trainer for the given precision and threads."""
    model.config.use_cache = False
    has_cuda = torch.cuda.is_available()
    trainer = (SFTTrainer if has_cuda else AnswerLossTrainer)(
        model=model,
        args=sft_config(recipe, run_folder, compute),
        train_dataset=to_dataset(encoded["train"]),
        eval_dataset=to_dataset(encoded["validation"]),
        processing_class=tokenizer,
        peft_config=lora_config(recipe, model),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=recipe.early_stopping_patience)],
    )
    trainer.remove_callback(PrinterCallback)
    if not has_cuda:
        assert trainer.model is not None
        fuse_lora(trainer.model)
    return trainer


def sft_config(recipe: RecipeConfig, run_folder: Path, compute: ComputeRecord) -> SFTConfig:
    has_cuda = torch.cuda.is_available()
    eval_steps = min(recipe.eval_steps, recipe.max_steps)
    return SFTConfig(
        output_dir=str(run_folder),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        per_device_eval_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        gradient_checkpointing=has_cuda,
        train_sampling_strategy="group_by_length",
        max_length=None,  # already cut, without losing the answer
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        prediction_loss_only=True,
        logging_steps=5,
        disable_tqdm=True,
        report_to=[],
        bf16=compute.precision != "float32",
        use_cpu=not has_cuda,
        dataloader_pin_memory=has_cuda,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


def _run(trainer: SFTTrainer, name: str, checkpoint: str | None, console: Console | None) -> Any:
    progress = Progress(f"train {name}", unit="steps")
    trainer.add_callback(TrainingProgress(progress))
    with ExitStack() as stack:
        if console is not None:
            stack.enter_context(shown(progress, console))
        if not torch.cuda.is_available():
            base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
            stack.enter_context(grouped_attention_of(base))
        return trainer.train(resume_from_checkpoint=checkpoint)


def to_dataset(encoded: Sequence[Encoded]) -> Dataset:
    return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in encoded])


def _metrics(trainer: SFTTrainer, train_loss: float) -> dict[str, float]:
    state = trainer.state
    best = state.best_metric if state.best_metric is not None else float("nan")
    return {"train_loss": round(train_loss, 4), "eval_loss": round(best, 4), "steps": float(state.global_step)}


def _device_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
