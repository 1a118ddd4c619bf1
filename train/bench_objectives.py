"""The sides of `lorikeet bench train` for the objectives other than `sft`: ours, and TRL's trainer as it comes.

Both train on the same rows in batches of the same size. TRL's DPO, KTO and reward trainers get the rows encoded, as
ours do; its ORPO, GRPO and RLOO text. `text` is packed in ours; TRL pads each document, as its packing needs flash
attention.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer, set_seed
from transformers.trainer_utils import IntervalStrategy
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from adapters.store.manifest import ComputeRecord, Precision
from config.dataset import DatasetRow, Message
from config.domain import DomainConfig
from config.rows import AnyRow, PreferenceRow, TextRow, UnpairedPreferenceRow
from train.bench_examples import NUM_EXAMPLES, TEMPLATE_TIME, TOPICS, BatchShape, conversation
from train.compute import compute_in
from train.data.documents import encode_documents
from train.data.encode import IGNORED
from train.data.general import FORGETTING_TEXT
from train.methods.table import method_of
from train.objectives.arguments import shared_arguments
from train.objectives.objective import Loaded, Task, TrainingData
from train.objectives.preference_trainers import SingleTrainer
from train.objectives.table import objective_of
from train.training import measure_compute

NUM_GENERATIONS = 4
MAX_NEW_TOKENS = 24
_MAX_LENGTH = 256
_SEED = 13


class PlainPairs(DPOTrainer):
    """TRL's own, but for the encoding of rows."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


class PlainSingles(KTOTrainer):
    """TRL's own, but for the encoding of rows."""

    _prepare_dataset = SingleTrainer._prepare_dataset


def make_objective_side(side: str, base_folder: Path, name: str, batch_size: int, run_folder: Path) -> Trainer:
    """`lorikeet`: the trainer of `lorikeet train`. `trl-...`: TRL's own trainer in that dtype, unchanged."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    config = _domain(name, batch_size)
    rows = objective_rows(name)
    splits = {"train": rows, "validation": rows[:8], "test": rows[:8]}
    objective = objective_of(config)
    task = Task(config, cast(Any, None), cast(Any, splits), tokenizer, TEMPLATE_TIME, run_folder, base_folder)
    data = objective.encode(task)
    model = objective.load(base_folder)
    if side == "lorikeet":
        compute = measure_compute(model, config, data.examples)
    else:
        precision: Precision = "float32" if side == "trl-float32" else "bfloat16"
        compute = ComputeRecord(precision=precision, num_threads=torch.get_num_threads())
    compute_in(model, compute)
    set_seed(config.recipe.seed)
    loaded = Loaded(model, method_of(config.method).peft_config(config.method, model), compute)
    if side == "lorikeet":
        trainer = objective.make_trainer(task, data, loaded)
    else:
        model.config.use_cache = False
        trainer = _plain(name, task, data, loaded)
    _train_only(trainer)
    return trainer


def objective_rows(name: str) -> list[AnyRow]:
    """Synthetic rows of the objective's type, the same for both sides."""
    rng, words = random.Random(_SEED), FORGETTING_TEXT.split()
    if name == "text":
        return [TextRow(text=" ".join(rng.choices(words, k=rng.randint(10, 120)))) for _ in range(NUM_EXAMPLES)]
    made = (conversation(words, "shared", rng) for _ in range(NUM_EXAMPLES))
    return [_row(name, number, *turns, rng) for number, turns in enumerate(made)]


def _row(name: str, number: int, system: Message, user: Message, answer: Message, rng: random.Random) -> AnyRow:
    if name in ("grpo", "rloo"):
        return DatasetRow(messages=(system, user, answer), input=user.content, output=answer.content)
    wrong = Message(role="assistant", content=f'{{"topic": "{rng.choice(TOPICS)}, or not"}}')
    prompt = system, user
    if name == "kto":
        is_good = number % 2 == 0
        given = answer if is_good else wrong
        return UnpairedPreferenceRow(prompt=prompt, completion=(given,), label=is_good, input=user.content)
    return PreferenceRow(prompt=prompt, chosen=(answer,), rejected=(wrong,), input=user.content)


def predicted_tokens(batch: Any) -> BatchShape:
    """Tokens with loss of `text`; the others' batches have the same rows on both sides, and are not counted."""
    if not isinstance(batch, dict) or "labels" not in batch:
        return BatchShape(0, 0, 0)
    count = int((batch["labels"][:, 1:] != IGNORED).sum())
    return BatchShape(count, count, count)


def _domain(name: str, batch_size: int) -> DomainConfig:
    objective: dict[str, Any] = {"name": name}
    if name in ("grpo", "rloo"):
        objective["num_generations"] = NUM_GENERATIONS
    if name == "text":
        batch_size //= 4  # rows of several documents each
    return DomainConfig.model_validate(
        {
            "name": "bench",
            "description": "Synthetic.",
            "data": {"source": "files", "path": "rows.jsonl"},
            "chat": {"system": "Topic?"},
            "objective": objective,
            "recipe": {
                "max_steps": 30,
                "per_device_train_batch_size": batch_size,
                "max_length": _MAX_LENGTH,
            },
            "evaluation": {"max_new_tokens": MAX_NEW_TOKENS},
        }
    )


def _train_only(trainer: Trainer) -> None:
    """No evaluation and no checkpoint disturbs a step."""
    args: Any = trainer.args
    args.eval_strategy = args.save_strategy = IntervalStrategy.NO
    args.load_best_model_at_end = args.eval_on_start = False
    args.logging_steps = 1
    for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == "EarlyStoppingCallback"]:
        trainer.remove_callback(callback)


def _plain(name: str, task: Task, data: TrainingData, loaded: Loaded) -> Trainer:
    shared = shared_arguments(task.config.recipe, task.run_folder, loaded.compute, loaded.model) | {
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
    }
    common: dict[str, Any] = {
        "model": loaded.model,
        "processing_class": task.tokenizer,
        "peft_config": loaded.peft_config,
    }
    rows: Sequence[Any] = task.rows["train"]
    match name:
        case "dpo":
            return PlainPairs(args=DPOConfig(**shared, max_length=None), train_dataset=data.train, **common)
        case "kto":
            settings: dict[str, Any] = {"max_length": None, "train_sampling_strategy": "sequential"}
            return PlainSingles(args=KTOConfig(**shared, **settings), train_dataset=data.train, **common)
        case "reward":
            return _plain_reward(shared, data, common)
        case "text":
            return _plain_text(shared, task, common)
        case "orpo":
            return _plain_orpo(shared, task.tokenizer, rows, common)
    return _plain_policy(name, shared, task.tokenizer, rows, common)


def _plain_reward(shared: dict[str, Any], data: TrainingData, common: dict[str, Any]) -> Trainer:
    from train.objectives.reward import whole, with_head

    common = common | {"peft_config": with_head(common["peft_config"])}
    rows = data.train.map(whole, remove_columns=["prompt_ids"])
    return RewardTrainer(args=RewardConfig(**shared, max_length=None), train_dataset=rows, **common)


def _plain_text(shared: dict[str, Any], task: Task, common: dict[str, Any]) -> Trainer:
    texts: Sequence[Any] = task.rows["train"]
    pieces = [piece for document in encode_documents(task.tokenizer, texts, task.config) for piece in document]
    args = SFTConfig(
        **shared | {"per_device_train_batch_size": 4 * shared["per_device_train_batch_size"]},
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        prediction_loss_only=True,
    )
    rows = Dataset.from_list([{"input_ids": list(piece), "labels": list(piece)} for piece in pieces])
    return SFTTrainer(args=args, train_dataset=rows, **common)


def _plain_orpo(
    shared: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], common: dict[str, Any]
) -> Trainer:
    from trl.experimental.orpo.orpo_config import ORPOConfig
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    columns = [
        {
            "prompt": _prompt_text(tokenizer, row.prompt),
            "chosen": row.chosen[-1].content,
            "rejected": row.rejected[-1].content,
        }
        for row in rows
    ]
    trainer: Trainer = ORPOTrainer(
        args=ORPOConfig(**shared, max_length=_MAX_LENGTH), train_dataset=Dataset.from_list(columns), **common
    )
    return trainer


def _plain_policy(
    name: str, shared: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], common: dict[str, Any]
) -> Trainer:
    from train.objectives.reinforcement import policy_trainers

    policy_trainers()  # without vLLM
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    settings: dict[str, Any] = shared | {"num_generations": NUM_GENERATIONS, "max_completion_length": MAX_NEW_TOKENS}
    prompts = [{"prompt": _prompt_text(tokenizer, row.prompt), "expected": row.output} for row in rows]
    common = common | {"train_dataset": Dataset.from_list(prompts), "reward_funcs": [_exact]}
    if name == "grpo":
        return GRPOTrainer(args=GRPOConfig(**settings, use_vllm=False), **common)
    return RLOOTrainer(args=RLOOConfig(**settings, use_vllm=False), **common)


def _exact(completions: Sequence[str], expected: Sequence[str], **_: Any) -> list[float | None]:
    return [float(answer.strip() == right) for answer, right in zip(completions, expected, strict=True)]


def _prompt_text(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message]) -> str:
    conversation = [turn.for_request() for turn in turns]
    return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
