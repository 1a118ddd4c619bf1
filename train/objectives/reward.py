"""`objective: reward`: a reward model, that is the base with a score instead of its output layer, and LoRA."""

from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig, PeftConfig
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, Trainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from adapters.scores import mean_score
from adapters.store.evaluation_records import ObjectiveScore
from config.dataset import DatasetRow
from config.objective import RewardObjective
from train.base.quantize import load_reward_model
from train.errors import RecipeError
from train.evaluate.paired import above_chance
from train.evaluate.reward import score_sequences
from train.lora_linear import fuse_lora
from train.methods.method import Trainable
from train.objectives.answers import encode_splits, encoded_test
from train.objectives.arguments import shared_arguments
from train.objectives.objective import Loaded, Objective, OnAnswers, Task, TrainingData
from train.objectives.preference import pairs_dataset
from train.processes import num_processes

HEAD = "score"


class Reward(Objective):
    """Scores of chosen against rejected answers; the score of a text is read at its last token that is not padding."""

    gives_answers: ClassVar[bool] = False
    gated_by: ClassVar[str] = "pair_accuracy"

    def encode(self, task: Task) -> TrainingData:
        train, validation = encode_splits(task)
        examples = [sequence for _, sequences in train for sequence in sequences]
        return TrainingData(pairs_dataset(train), pairs_dataset(validation), examples)

    def load(self, base_folder: Path) -> PreTrainedModel:
        return load_reward_model(base_folder)

    def make_trainer(self, task: Task, data: TrainingData, loaded: Loaded) -> Trainer:
        objective, recipe = task.config.objective, task.config.recipe
        assert isinstance(objective, RewardObjective)
        args = RewardConfig(
            **shared_arguments(recipe, task.run_folder, loaded.compute, loaded.model),
            max_length=None,  # already cut, without losing the answer
            center_rewards_coefficient=objective.center_rewards_coefficient,
            prediction_loss_only=True,
        )
        trainer = RewardTrainer(
            model=loaded.model,
            args=args,
            train_dataset=data.train.map(whole, remove_columns=["prompt_ids"]),
            eval_dataset=data.validation.map(whole, remove_columns=["prompt_ids"]),
            processing_class=task.tokenizer,
            peft_config=with_head(loaded.peft_config),
            callbacks=[EarlyStoppingCallback(early_stopping_patience=recipe.early_stopping_patience)],
        )
        trainer.remove_callback(PrinterCallback)
        if not torch.cuda.is_available() and num_processes() == 1:
            assert trainer.model is not None
            fuse_lora(trainer.model)
        return trainer

    def evaluate(self, task: Task, model: Trainable, on_answers: OnAnswers) -> dict[str, ObjectiveScore]:
        pairs = [sequences for _, sequences in encoded_test(task)]
        chosen, rejected = (score_sequences(model, [pair[side].input_ids for pair in pairs]) for side in (0, 1))
        margins = [good - bad for good, bad in zip(chosen, rejected, strict=True)]
        return {
            "pair_accuracy": above_chance([margin > 0 for margin in margins]),
            "score_margin": ObjectiveScore(adapter=mean_score(margins)),
        }

    def questions(self, task: Task) -> list[DatasetRow]:
        return []


def whole(row: dict[str, list[int]]) -> dict[str, list[int]]:
    return {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}


def with_head(config: PeftConfig | None) -> LoraConfig:
    """PEFT's configuration with the score as a layer that is trained and saved whole."""
    if not isinstance(config, LoraConfig):
        raise RecipeError("`objective: reward` trains a LoRA and a score: set `method: lora`.")
    config.task_type = "SEQ_CLS"
    config.modules_to_save = [HEAD]
    config.target_modules = sorted(set(config.target_modules or ()) - {HEAD})
    return config
