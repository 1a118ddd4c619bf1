"""`objective: dpo`, `orpo` and `kto`: preferences, with TRL's trainers on rows that are encoded already."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, Trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.kto_config import KTOConfig

from adapters.store.evaluation_records import ObjectiveScore
from config.dataset import DatasetRow
from config.objective import DpoObjective, KtoObjective, OrpoObjective
from config.rows import UnpairedPreferenceRow
from train.base.quantize import load_causal_lm
from train.evaluate.preference import label_scores, pair_scores
from train.lora_linear import fuse_lora
from train.methods.method import Trainable
from train.objectives.answers import EncodedRow, encode_splits, encoded_test, questions_of
from train.objectives.arguments import shared_arguments
from train.objectives.objective import Loaded, Objective, OnAnswers, Task, TrainingData
from train.objectives.preference_trainers import OrpoTrainer, PairTrainer, SingleTrainer
from train.processes import num_processes


class PreferenceObjective(Objective):
    """What DPO, ORPO and KTO have in common."""

    def encode(self, task: Task) -> TrainingData:
        train, validation = encode_splits(task)
        examples = [sequence for _, sequences in train for sequence in sequences]
        return TrainingData(self.to_dataset(train), self.to_dataset(validation), examples)

    def to_dataset(self, rows: Sequence[EncodedRow]) -> Dataset:
        raise NotImplementedError

    def load(self, base_folder: Path) -> PreTrainedModel:
        return load_causal_lm(base_folder)

    def questions(self, task: Task) -> list[DatasetRow]:
        return questions_of(task)


class Dpo(PreferenceObjective):
    """Chosen against rejected answers; the reference is the version of `from`, otherwise the base."""

    gated_by: ClassVar[str] = "reward_accuracy"

    def to_dataset(self, rows: Sequence[EncodedRow]) -> Dataset:
        return pairs_dataset(rows)

    def make_trainer(self, task: Task, data: TrainingData, loaded: Loaded) -> Trainer:
        objective = task.config.objective
        assert isinstance(objective, DpoObjective)
        settings = objective.model_dump(include={"beta", "label_smoothing"}) | {"loss_type": [objective.loss_type]}
        args = DPOConfig(**_arguments(task, loaded), **settings)
        return _ready(PairTrainer(args=args, **_trainer_arguments(task, data, loaded)))

    def evaluate(self, task: Task, model: Trainable, on_answers: OnAnswers) -> dict[str, ObjectiveScore]:
        objective = task.config.objective
        assert isinstance(objective, DpoObjective)
        pairs = [(sequences[0], sequences[1]) for _, sequences in encoded_test(task)]
        return pair_scores(model, pairs, objective.beta)


class Orpo(PreferenceObjective):
    """Chosen answers and the odds ratio against rejected ones; no reference."""

    gated_by: ClassVar[str] = "preference_accuracy"

    def to_dataset(self, rows: Sequence[EncodedRow]) -> Dataset:
        return pairs_dataset(rows)

    def make_trainer(self, task: Task, data: TrainingData, loaded: Loaded) -> Trainer:
        objective = task.config.objective
        assert isinstance(objective, OrpoObjective)
        args = DPOConfig(**_arguments(task, loaded), beta=objective.beta)
        return _ready(OrpoTrainer(args=args, **_trainer_arguments(task, data, loaded)))

    def evaluate(self, task: Task, model: Trainable, on_answers: OnAnswers) -> dict[str, ObjectiveScore]:
        pairs = [(sequences[0], sequences[1]) for _, sequences in encoded_test(task)]
        return {"preference_accuracy": pair_scores(model, pairs, 1.0)["preference_accuracy"]}


class Kto(PreferenceObjective):
    """Single answers, each labelled good or bad; the reference is the version of `from`, otherwise the base."""

    gated_by: ClassVar[str] = "label_accuracy"

    def to_dataset(self, rows: Sequence[EncodedRow]) -> Dataset:
        return Dataset.from_list(
            [
                {"prompt_ids": list(one.prompt_ids), "completion_ids": list(one.answer_ids), "label": row.label}
                for row, (one,) in rows
                if isinstance(row, UnpairedPreferenceRow)
            ]
        )

    def make_trainer(self, task: Task, data: TrainingData, loaded: Loaded) -> Trainer:
        objective = task.config.objective
        assert isinstance(objective, KtoObjective)
        settings = objective.model_dump(exclude={"name"})
        # The mismatched answers of a batch are its own, so batches are fixed before training.
        args = KTOConfig(**_arguments(task, loaded), **settings, train_sampling_strategy="sequential")
        return _ready(SingleTrainer(args=args, **_trainer_arguments(task, data, loaded)))

    def evaluate(self, task: Task, model: Trainable, on_answers: OnAnswers) -> dict[str, ObjectiveScore]:
        test = encoded_test(task)
        labelled = [(one, row.label) for row, (one,) in test if isinstance(row, UnpairedPreferenceRow)]
        return label_scores(model, labelled)


def pairs_dataset(rows: Sequence[EncodedRow]) -> Dataset:
    """The columns of TRL's collator for preferences."""
    return Dataset.from_list(
        [
            {
                "prompt_ids": list(chosen.prompt_ids),
                "chosen_ids": list(chosen.answer_ids),
                "rejected_ids": list(rejected.answer_ids),
            }
            for _, (chosen, rejected) in rows
        ]
    )


def _arguments(task: Task, loaded: Loaded) -> dict[str, Any]:
    shared = shared_arguments(task.config.recipe, task.run_folder, loaded.compute, loaded.model)
    return shared | {"max_length": None}  # already cut, without losing the answer


def _trainer_arguments(task: Task, data: TrainingData, loaded: Loaded) -> dict[str, Any]:
    loaded.model.config.use_cache = False
    patience = task.config.recipe.early_stopping_patience
    return {
        "model": loaded.model,
        "train_dataset": data.train,
        "eval_dataset": data.validation,
        "processing_class": task.tokenizer,
        "peft_config": loaded.peft_config,
        "callbacks": [EarlyStoppingCallback(early_stopping_patience=patience)],
    }


def _ready(trainer: Trainer) -> Trainer:
    trainer.remove_callback(PrinterCallback)
    if not torch.cuda.is_available() and num_processes() == 1:
        assert trainer.model is not None
        fuse_lora(trainer.model)
    return trainer
