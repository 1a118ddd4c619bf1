"""A training run: one adapter on a prepared base, by the trainer of its objective."""

import copy
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from rich.console import Console
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME

from adapters.store.manifest import BaseManifest, ComputeRecord, TrainingRecord
from config.dataset import DatasetManifest, Split
from config.domain import DomainConfig
from config.progress import Progress, shown
from config.rows import AnyRow
from config.training import TrainingConfig
from train.attention import grouped_attention_of
from train.base.prepare import library_versions
from train.compute import Shape, compute_in, measure_training
from train.data.encode import Encoded, encode
from train.data.template import names_time, run_time
from train.errors import ResumeError
from train.evaluate.preference import REFERENCE_ADAPTER
from train.methods.finishing import finish, is_saved, saved_dtype
from train.methods.method import Trainable, base_of
from train.methods.peft_errors import peft_errors_named
from train.methods.table import method_of
from train.methods.targets import VOCABULARY
from train.methods.virtual_tokens import save_virtual_tokens
from train.objectives.objective import Loaded, Objective, StoredVersion, Task, TrainingData
from train.objectives.start import with_adapter_of
from train.objectives.table import objective_of
from train.out_of_memory import memory_errors_named
from train.processes import first_in_turn, is_first_process, num_processes
from train.progress import TrainingProgress
from train.replay import with_replay
from train.runs import (
    has_ended,
    is_run_of,
    last_checkpoint,
    read_compute,
    read_template_time,
    run_key,
    start_run,
    write_compute,
    write_end,
    write_template_time,
)
from train.watch import loss_curves, metrics_of, rows_seen, watch_run

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
ADAPTER_NAME = "default"
BEST_BY = ("eval_loss", "eval_reward")
"""What the kept checkpoint is the best by, one of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A trained adapter on its base, in memory; its weights are rounded to bf16, as they are saved and served."""

    model: Trainable
    record: TrainingRecord
    task: Task
    seen: tuple[int, ...] | None = None
    """Numbers of the training rows that the kept weights have seen; None: not known."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.task.tokenizer

    @property
    def template_time(self) -> datetime:
        """The time passed to the chat template in evaluation and in the fingerprint."""
        return self.task.template_time


def train_adapter(
    config: DomainConfig,
    base: BaseManifest,
    base_folder: Path,
    dataset: DatasetManifest,
    rows: Mapping[Split, Sequence[AnyRow]],
    run_folder: Path,
    *,
    versions: Mapping[str, StoredVersion] | None = None,
    resume: bool = False,
    compute: ComputeRecord | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    console: Console | None = None,
    today: Callable[[], date] = date.today,
) -> Trained:
    """Train one adapter; the returned model has the weights with the best held-out loss.

    Args:
        versions: The published versions that the configuration names, by their lora_name.
        compute: Precision and threads; None: those of the interrupted run, otherwise the fastest on this machine.
        callbacks: Further ones, of a sweep or a tracker.
        today: Date of a new run.

    Raises:
        RecipeError: The base lacks a target module, or PEFT cannot use the method's settings on its layers.
        DivergenceError: The loss or the gradient grows without bound; checkpoints from before stay.
        TrainingMemoryError: The run does not fit into memory.
        ResumeError: `resume` without a checkpoint of this base, data set and recipe.
        DataError: Rows cannot be encoded with the base's chat template, in `max_length` tokens.
    """
    objective = objective_of(config)
    checkpoint, task = _begin(config, base, base_folder, dataset, rows, run_folder, versions or {}, resume, today)
    with first_in_turn():
        task = with_replay(task, objective.load)
    data = objective.encode(task)
    model = objective.load(base_folder)
    with first_in_turn():
        compute = compute or read_compute(run_folder) or measure_compute(model, config, data.examples)
        if is_first_process():
            write_compute(run_folder, compute)
    compute_in(model, compute)
    set_seed(config.recipe.seed)
    trainer = _make_trainer(task, objective, data, model, compute, callbacks)
    assert trainer.model is not None
    num_trainable: int = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    started = time.monotonic()
    with memory_errors_named(config):
        _run(trainer, config.name, checkpoint, console)
    duration_s = time.monotonic() - started
    at = task.template_time
    asked = [encode(task.tokenizer, row.messages, at, row.tools) for row in objective.questions(task)]
    whole = _whole(trainer, objective, base_folder, task)
    trained, conversion = finish(config, whole, base_folder, run_folder, compute, asked or data.examples)
    record = TrainingRecord(
        arguments=config.training_arguments,
        metrics=metrics_of(trainer.state) | {"trainable_parameters": float(num_trainable)},
        duration_s=round(duration_s, 1),
        device=_device_name(),
        libraries=library_versions(*LIBRARIES),
        compute=compute,
        template_time=at if names_time(task.tokenizer) else None,
        conversion=conversion,
        losses=loss_curves(trainer.state),
    )
    measured = ", ".join(f"{name} {record.metrics[name]:.3f}" for name in BEST_BY if name in record.metrics)
    logger.info("%s trained in %.0f s, best %s", config.name, duration_s, measured)
    return Trained(trained, record, task, rows_seen(trainer, len(rows["train"]), data.num_replay))


def _begin(
    config: DomainConfig,
    base: BaseManifest,
    base_folder: Path,
    dataset: DatasetManifest,
    rows: Mapping[Split, Sequence[AnyRow]],
    run_folder: Path,
    versions: Mapping[str, StoredVersion],
    resume: bool,
    today: Callable[[], date],
) -> tuple[str | None, Task]:
    """The checkpoint to resume from, if any, and the task, with the date of the run's first start."""
    with first_in_turn():
        checkpoint = _prepare_run(run_folder, run_key(config, base, dataset), resume=resume)
        at = read_template_time(run_folder) or run_time(config.recipe, today())
        if is_first_process():
            write_template_time(run_folder, at)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    return checkpoint, Task(config, dataset, rows, tokenizer, at, run_folder, base_folder, versions)


def _make_trainer(
    task: Task,
    objective: Objective,
    data: TrainingData,
    model: PreTrainedModel,
    compute: ComputeRecord,
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    """The objective's trainer on what the method trains of the model, watched."""
    settings, method = task.config.method, method_of(task.config.method)
    if task.start is not None:
        loaded = Loaded(with_adapter_of(model, task.start), None, compute)
    else:
        with peft_errors_named(settings):
            peft_config = method.peft_config(settings, model)
            method.prepare(settings, model, peft_config, data.examples)
        loaded = Loaded(model, peft_config, compute)
    with _known_warnings_ignored(), peft_errors_named(settings):
        trainer = objective.make_trainer(task, data, loaded)
        method.set_up(settings, trainer, data.examples)
    watch_run(trainer, task, objective)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def save_adapter(model: Trainable, folder: Path, base_name: str) -> None:
    """Write PEFT's files deterministically, and without local paths."""
    assert isinstance(model, PeftModel)
    model.peft_config[ADAPTER_NAME].base_model_name_or_path = base_name
    if model.peft_config[ADAPTER_NAME].is_prompt_learning:
        save_virtual_tokens(model, folder)
        return
    weights = {name: tensor.to(saved_dtype(name)) for name, tensor in model.state_dict().items() if is_saved(name)}
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # PEFT keeps a set, whose order changes from process to process.
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _prepare_run(folder: Path, key: str, *, resume: bool) -> str | None:
    """Create a new run folder, or find the last checkpoint of an interrupted run."""
    if not resume and not is_first_process():
        return None
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


def measure_compute(model: PreTrainedModel, config: TrainingConfig, examples: Sequence[Encoded]) -> ComputeRecord:
    """Choose for batches of median length."""
    num_tokens = median_low(map(len, examples))
    shape = Shape(config.recipe.per_device_train_batch_size, num_tokens)
    method = method_of(config.method)
    if method.changes_base(config.method) and not torch.cuda.is_available():
        return ComputeRecord(precision="float32", num_threads=torch.get_num_threads())
    with peft_errors_named(config.method):
        peft_config = method.peft_config(config.method, model)
    lora = _plain(peft_config) if isinstance(peft_config, LoraConfig) else None
    return measure_training(model, lora if lora and lora.target_modules else None, shape)


def _plain(config: LoraConfig) -> LoraConfig:
    """For one decoder layer, without an initialisation that takes long; the speed is the same."""
    plain = copy.copy(config)
    plain.init_lora_weights, plain.layers_to_transform = True, None
    plain.target_modules = [name for name in config.target_modules or () if name not in VOCABULARY]
    return plain


def _run(trainer: Trainer, name: str, checkpoint: str | None, console: Console | None) -> None:
    """Train, or resume; of a run that ended, only the best weights are loaded."""
    run_folder = Path(str(trainer.args.output_dir))
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if has_ended(run_folder, state.global_step):
            trainer.state = state
            if not trainer.is_fsdp_enabled:
                trainer._load_best_model()
            return
    progress = Progress(f"train {name}", unit="steps")
    trainer.add_callback(TrainingProgress(progress))
    with ExitStack() as stack:
        if console is not None:
            stack.enter_context(shown(progress, console))
        if not torch.cuda.is_available():
            stack.enter_context(grouped_attention_of(base_of(trainer.accelerator.unwrap_model(trainer.model))))
        stack.enter_context(_known_warnings_ignored())
        trainer.train(resume_from_checkpoint=checkpoint)
    if is_first_process():
        write_end(run_folder, trainer.state.global_step)


@contextmanager
def _known_warnings_ignored() -> Iterator[None]:
    """PEFT's: an adapted embedding does not change an output layer that shares its weights, here as in vLLM; BOFT's
    CUDA kernel has an equivalent in torch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        warnings.filterwarnings("ignore", "Failed to load the CUDA extension", UserWarning)
        warnings.filterwarnings("ignore", "Setting boft_n_butterfly_factor to 1", UserWarning)
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`", UserWarning)
        yield


def _whole(trainer: Trainer, objective: Objective, base_folder: Path, task: Task) -> Trainable:
    """The trained model; of one in shards, the best checkpoint on the base anew, and its reference."""
    model = trainer.model
    if trainer.is_fsdp_enabled:
        sharded = trainer.accelerator.unwrap_model(model)
        best = Path(str(trainer.state.best_model_checkpoint))
        if not isinstance(sharded, PeftModel):
            return objective.load(best)
        model = PeftModel.from_pretrained(objective.load(base_folder), str(best))
        if task.start is not None and REFERENCE_ADAPTER in sharded.peft_config:
            model.load_adapter(str(task.start.folder), REFERENCE_ADAPTER)
    assert isinstance(model, PeftModel | PreTrainedModel)
    return model


def _device_name() -> str:
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return name if num_processes() == 1 else f"{num_processes()} x {name}"
