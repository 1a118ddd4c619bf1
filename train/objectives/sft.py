"""`objective: sft`: supervised fine-tuning on answers, with TRL's trainer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from adapters.store.manifest import ComputeRecord
from config.dataset import SPLITS, DatasetRow, Split
from config.training import RecipeConfig, TrainingConfig
from train.base.quantize import load_causal_lm
from train.data.encode import Encoded
from train.data.sequences import check_held_out, encode_rows
from train.data.template import row_times
from train.lora_linear import fuse_lora
from train.methods.method import Trainable
from train.objectives.answer_loss import AnswerLossTrainer
from train.objectives.arguments import shared_arguments
from train.objectives.objective import TRAINED_SPLITS, Loaded, Objective, Task, TrainingData
from train.objectives.packing import packed_batch, packed_examples
from train.processes import num_processes


class Sft(Objective):
    """Supervised fine-tuning; judged by the domain's own metric on the test rows."""

    gated_by: ClassVar[str] = "exact_match"

    def encode(self, task: Task) -> TrainingData:
        config, at, rows = task.config, task.template_time, _rows_of(task)
        train, validation = (
            encode_rows(task.tokenizer, rows[split], config, row_times(config.recipe, at, len(rows[split]), split))
            for split in TRAINED_SPLITS
        )
        check_held_out(task.tokenizer, rows["test"], config, at)
        replay = _encoded_replay(task)
        train = [*train, *replay]
        if config.recipe.packing:
            size = config.recipe.max_length
            return TrainingData(packed_examples(train, size), packed_examples(validation, size), train)
        return replace(sft_data(train, validation), num_replay=len(replay))

    def load(self, base_folder: Path) -> PreTrainedModel:
        return load_causal_lm(base_folder)

    def make_trainer(self, task: Task, data: TrainingData, loaded: Loaded) -> SFTTrainer:
        return make_trainer(task.config, data, loaded, task.tokenizer, task.run_folder)

    def questions(self, task: Task) -> list[DatasetRow]:
        return _rows_of(task)["test"]


def _rows_of(task: Task) -> dict[Split, list[DatasetRow]]:
    return {split: [row for row in task.rows.get(split, ()) if isinstance(row, DatasetRow)] for split in SPLITS}


def _encoded_replay(task: Task) -> list[Encoded]:
    """The general rows; those that are too long are left out."""
    if not task.replay:
        return []
    config = task.config
    dropping = config.model_copy(update={"data": config.data.model_copy(update={"cut_long_inputs": "drop"})})
    times = row_times(config.recipe, task.template_time, len(task.replay), "train")
    return encode_rows(task.tokenizer, task.replay, dropping, times)


def sft_data(train: Sequence[Encoded], validation: Sequence[Encoded]) -> TrainingData:
    return TrainingData(to_dataset(train), to_dataset(validation), train)


def make_trainer(
    config: TrainingConfig,
    data: TrainingData,
    loaded: Loaded,
    tokenizer: PreTrainedTokenizerBase,
    run_folder: Path,
) -> SFTTrainer:
    """Create the trainer for the given precision and threads."""
    loaded.model.config.use_cache = False
    # Our loss goes around the model's own forward, in which PEFT adds virtual tokens and processes share gradients.
    has_virtual_tokens = loaded.peft_config is not None and loaded.peft_config.is_prompt_learning
    is_alone = not torch.cuda.is_available() and num_processes() == 1 and not has_virtual_tokens
    trainer = (AnswerLossTrainer if is_alone and not config.recipe.packing else SFTTrainer)(
        model=loaded.model,
        args=sft_config(config.recipe, run_folder, loaded.compute, loaded.model),
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        peft_config=loaded.peft_config,
        data_collator=packed_batch if config.recipe.packing else None,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=config.recipe.early_stopping_patience)],
    )
    trainer.remove_callback(PrinterCallback)
    if is_alone:
        assert trainer.model is not None
        fuse_lora(trainer.model)
    return trainer


def sft_config(recipe: RecipeConfig, run_folder: Path, compute: ComputeRecord, model: Trainable) -> SFTConfig:
    return SFTConfig(
        **shared_arguments(recipe, run_folder, compute, model),
        train_sampling_strategy="group_by_length",
        max_length=None,  # already cut, without losing the answer
        dataset_kwargs={"skip_prepare_dataset": True},
        prediction_loss_only=True,
    )


def to_dataset(encoded: Sequence[Encoded]) -> Dataset:
    return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in encoded])
