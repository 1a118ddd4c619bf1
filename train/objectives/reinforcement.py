"""`objective: grpo` and `rloo`: reinforcement with a verifiable reward, by TRL's trainers.

The model samples answers to the rows' prompts; an answer's reward is a weighted sum of the domain's own scorers.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
)
from trl import import_utils as trl_imports

from adapters.scores import mean_score
from adapters.store.evaluation_records import ObjectiveScore
from config.dataset import DatasetRow, Message, Split
from config.domain import DomainConfig
from config.objective import GrpoObjective, ReinforcementObjective
from config.rows import PromptRow
from train.base.quantize import load_causal_lm
from train.data.encode import Encoded, encode_prompt, token_ids
from train.data.prompts import encode_prompts, prompt_of
from train.data.sequences import check_held_out
from train.data.template import row_times
from train.errors import RecipeError
from train.evaluate.fingerprint import NUM_GOLDEN_PROMPTS
from train.evaluate.local import generate, without_adapter
from train.evaluate.paired import paired_mean
from train.evaluate.reward import RewardScorer
from train.lora_linear import fuse_lora
from train.methods.method import Trainable
from train.objectives.arguments import shared_arguments
from train.objectives.graders import check_items, grader_score
from train.objectives.objective import Loaded, Objective, OnAnswers, Task, TrainingData
from train.objectives.reward_check import check_learnable, check_reward
from train.objectives.rewards import AnswerReward, RewardedPrompt, RewardPart, domain_reward, question_of

if TYPE_CHECKING:
    from train.objectives.policy_trainers import PolicyTrainer

_EVAL_BATCH_SIZE = 64
"""Held-out answers are generated, not trained on: many at once."""


class Reinforcement(Objective):
    """Both objectives; judged by the domain's own metric where the rows have expected answers."""

    gated_by: ClassVar[str] = "exact_match"

    def encode(self, task: Task) -> TrainingData:
        config, objective = task.config, settings_of(task.config)
        rows = _rows_of(task)
        longest = max_completion_length(config)
        questions = [question_of(row) for row in rows["train"]]
        if objective.grader is not None:
            check_items(objective.grader, [question_of(row) for split in rows.values() for row in split])
        check_reward(reward_of(task), questions, config, lambda text: _reachable(task.tokenizer, text, longest))
        train, validation = (self._prompts(task, rows, split, longest) for split in ("train", "validation"))
        num_answers = config.recipe.per_device_train_batch_size * config.recipe.gradient_accumulation_steps
        check_learnable(len(train), num_answers // objective.num_generations)
        check_held_out(task.tokenizer, rows["test"], config, task.template_time)
        first = len(rows["train"])  # questions are numbered over both splits
        examples = [Encoded(ids, (task.tokenizer.eos_token_id,) * longest) for ids in train.values()]
        return TrainingData(to_dataset(train), to_dataset(validation, first), examples)

    def _prompts(
        self, task: Task, rows: Mapping[Split, Sequence[DatasetRow | PromptRow]], split: Split, longest: int
    ) -> dict[int, tuple[int, ...]]:
        times = row_times(task.config.recipe, task.template_time, len(rows[split]), split)
        return encode_prompts(task.tokenizer, rows[split], task.config, times, longest)

    def load(self, base_folder: Path) -> PreTrainedModel:
        return load_causal_lm(base_folder)

    def make_trainer(self, task: Task, data: TrainingData, loaded: Loaded) -> "PolicyTrainer":
        loaded.model.config.use_cache = False
        rows = _rows_of(task)
        questions = [question_of(row) for row in (*rows["train"], *rows["validation"])]
        reward, config = reward_of(task), task.config
        trainers = policy_trainers()
        trainer: PolicyTrainer = trainers.make_trainer(
            config.objective.name,
            policy_arguments(config, reward, task.run_folder, loaded),
            model=loaded.model,
            reward_funcs=[_reward_function(part, reward, questions) for part in reward.parts],
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=task.tokenizer,
            peft_config=loaded.peft_config,
            callbacks=[EarlyStoppingCallback(early_stopping_patience=config.recipe.early_stopping_patience)],
            stop=config.evaluation.stop,
        )
        trainer.remove_callback(PrinterCallback)
        if not torch.cuda.is_available():
            assert trainer.model is not None
            fuse_lora(trainer.model)
        return trainer

    def evaluate(self, task: Task, model: Trainable, on_answers: OnAnswers) -> dict[str, ObjectiveScore]:
        """Mean reward of the answers to the held-out prompts, decoded as clients get them."""
        rows = _rows_of(task)["test"]
        reward, questions = reward_of(task), [question_of(row) for row in rows]
        prompts = [encode_prompt(task.tokenizer, prompt_of(row), task.template_time, row.tools) for row in rows]

        def rewards() -> list[float]:
            answers = generate(model, task.tokenizer, prompts, task.dataset, on_answers)
            return reward.of(questions, [answer.text for answer in answers])

        with without_adapter(model):
            base = rewards()
        own = rewards()
        gain = paired_mean(base, own)
        return {"reward": ObjectiveScore(base=mean_score(base), adapter=mean_score(own), paired_gain=gain)}

    def num_answers(self, task: Task) -> int:
        return 2 * len(_rows_of(task)["test"])

    def questions(self, task: Task) -> list[DatasetRow]:
        return [row for row in _rows_of(task)["test"] if isinstance(row, DatasetRow)]

    def golden(self, task: Task) -> list[DatasetRow]:
        """The questions; of prompts alone, the prompt's own text as the answer, as any text shows the weights."""
        prompts = [row for row in _rows_of(task)["test"] if isinstance(row, PromptRow)]
        return self.questions(task) or [_echo(row) for row in prompts[:NUM_GOLDEN_PROMPTS]]


def policy_trainers() -> ModuleType:
    """TRL's trainers, imported when needed; without a GPU they do not import vLLM, which takes seconds."""
    if not torch.cuda.is_available():
        trl_imports.is_vllm_available = lambda *args, **kwargs: False
    from train.objectives import policy_trainers

    return policy_trainers


def settings_of(config: DomainConfig) -> ReinforcementObjective:
    assert isinstance(config.objective, ReinforcementObjective)
    return config.objective


def max_completion_length(config: DomainConfig) -> int:
    """Tokens of a sampled answer.

    Raises:
        RecipeError: It leaves no room for a prompt in `recipe.max_length`.
    """
    longest = settings_of(config).max_completion_length or config.evaluation.max_new_tokens
    if longest >= config.recipe.max_length:
        raise RecipeError(
            f"`recipe.max_length` {config.recipe.max_length} must exceed the {longest} tokens of an answer "
            "(`objective.max_completion_length`, by default `evaluation.max_new_tokens`), as it covers the prompt too."
        )
    return longest


def reward_of(task: Task) -> AnswerReward:
    """The domain's reward, with the scores of its grader and of its reward model, if any."""
    settings = settings_of(task.config)
    name, grade = settings.reward_model, grader_score(settings)
    if name is None:
        return domain_reward(task.config, grade=grade)
    scorer, at = _reward_scorer(task.versions[name].folder, task.base_folder), task.template_time

    def model_score(questions: Sequence[RewardedPrompt], answers: Sequence[str]) -> list[float]:
        return scorer.score([question.prompt for question in questions], answers, at)

    return domain_reward(task.config, model_score, grade)


@lru_cache(maxsize=1)
def _reward_scorer(version_folder: Path, base_folder: Path) -> RewardScorer:
    """Loaded once for check, training and evaluation."""
    return RewardScorer.load(version_folder, base_folder)


def policy_arguments(config: DomainConfig, reward: AnswerReward, run_folder: Path, loaded: Loaded) -> dict[str, Any]:
    """Arguments of TRL's configuration: those of both objectives, then GRPO's own."""
    objective = settings_of(config)
    arguments = shared_arguments(config.recipe, run_folder, loaded.compute, loaded.model) | {
        "num_generations": objective.num_generations,
        "num_generations_eval": 1,
        "per_device_eval_batch_size": _EVAL_BATCH_SIZE,
        "max_completion_length": max_completion_length(config),
        "temperature": objective.temperature,
        "beta": objective.beta,  # type: ignore[attr-defined]  # both have it, with defaults of their own
        "reward_weights": [part.weight for part in reward.parts],
        "eval_on_start": True,  # the held-out reward before training
        "metric_for_best_model": "eval_reward",
        "greater_is_better": True,
        **vllm_arguments(loaded.model, config.evaluation.stop),
    }
    if isinstance(objective, GrpoObjective):
        arguments |= {"loss_type": objective.loss_type, "scale_rewards": objective.scale_rewards}
    return arguments


def vllm_arguments(model: torch.nn.Module, stop: Sequence[str]) -> dict[str, Any]:
    """Generation by vLLM in this process where there is a CUDA GPU; not with bitsandbytes' own tensors, into which
    TRL cannot load the merged weights.
    """
    is_quantized = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    if not torch.cuda.is_available() or is_quantized:
        return {"use_vllm": False}
    stops = {"stop": list(stop), "include_stop_str_in_output": True} if stop else {}
    return {"use_vllm": True, "vllm_mode": "colocate", "generation_kwargs": stops}


def to_dataset(prompts: Mapping[int, tuple[int, ...]], first: int = 0) -> Dataset:
    """Token ids, and the number of the question counted from `first`."""
    return Dataset.from_list([{"prompt": list(ids), "number": first + index} for index, ids in prompts.items()])


def _reward_function(part: RewardPart, reward: AnswerReward, questions: Sequence[RewardedPrompt]) -> Any:
    """One scorer as TRL calls it; named, so that its mean is logged."""

    def score(completions: Sequence[str], number: Sequence[int], **_: Any) -> list[float]:
        return part.score([questions[n] for n in number], [reward.ended(text) for text in completions])

    score.__name__ = part.name
    return score


def _reachable(tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int) -> str:
    ids = token_ids(tokenizer, text)
    return text if len(ids) <= num_tokens else str(tokenizer.decode(ids[:num_tokens]))


def _echo(row: PromptRow) -> DatasetRow:
    answer = Message(role="assistant", content=row.input)
    return DatasetRow(messages=(*row.messages, answer), tools=row.tools, input=row.input, output=row.input)


def _rows_of(task: Task) -> dict[Split, list[DatasetRow | PromptRow]]:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    return {split: [r for r in task.rows.get(split, ()) if isinstance(r, DatasetRow | PromptRow)] for split in splits}
