"""GRPO and RLOO on a tiny Llama: the trainers, generation, and packed log-probabilities."""

import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import AutoTokenizer, EarlyStoppingCallback

from adapters.fingerprint import read_fingerprint
from adapters.store.manifest import ComputeRecord, LoraSpec
from config.dataset import SPLITS, DatasetManifest
from config.domain import DomainConfig
from config.home import Home
from config.rows import PromptRow, read_rows
from tests.objective_domains import objective_domain
from tests.tiny_llama import (
    NO_PROBES,
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    write_colour_data,
    write_tiny_llama,
)
from train.attention import grouped_attention_of
from train.base.quantize import load_causal_lm
from train.data.build import build_dataset
from train.data.encode import encode_prompt
from train.errors import DataError, RecipeError
from train.evaluate.reward import RewardScorer
from train.objectives.objective import Loaded, Task
from train.objectives.reinforcement import Reinforcement, reward_of
from train.objectives.rewards import question_of
from train.objectives.start import check_reward_model, drop_reference
from train.pipeline import train_and_publish

pytestmark = pytest.mark.slow

CPU = ComputeRecord(precision="float32", num_threads=1, layer_ms={})
OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {"name": "grpo", "num_generations": 4},
    "grpo with a reference": {"name": "grpo", "num_generations": 4, "beta": 0.1},
    "rloo": {"name": "rloo"},
}


class Lab:
    """A tiny base and data set, for objectives of any settings."""

    def __init__(self, root: Path, initializer_range: float = 0.02) -> None:
        self.home = Home(root / "var")
        prepare_tiny_base(self.home, write_tiny_llama(root / "model", initializer_range=initializer_range))
        self.plain = tiny_domain(write_colour_data(root / "colours.jsonl"))
        self.dataset: DatasetManifest = build_dataset(self.plain, self.home)
        self.rows: dict[Any, list[Any]] = {s: list(read_rows(self.home.datasets / "colours", s)) for s in SPLITS}
        self.root = root

    def domain(self, objective: dict[str, Any], batch_size: int = 8, **fields: Any) -> DomainConfig:
        settings = self.plain.model_dump(mode="json", by_alias=True) | fields
        settings["objective"] = objective
        settings["evaluation"] |= {"max_new_tokens": 6} | NO_PROBES
        settings["recipe"] |= {"per_device_train_batch_size": batch_size, "warmup_steps": 0}
        return DomainConfig.model_validate(settings)

    def task(self, config: DomainConfig) -> Task:
        base_folder = self.home.bases / "tiny"
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        return Task(config, self.dataset, self.rows, tokenizer, RENDERED_AT, self.root / "run", base_folder)

    def trainer(self, config: DomainConfig, *, is_started: bool = False) -> Any:
        """`is_started`: from an adapter, as with `from`, and not from the base alone."""
        objective, task = Reinforcement(), self.task(config)
        model = load_causal_lm(self.home.bases / "tiny", dtype=torch.float32)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        torch.manual_seed(0)
        loaded = Loaded(get_peft_model(model, lora), None, CPU) if is_started else Loaded(model, lora, CPU)
        return objective.make_trainer(task, objective.encode(task), loaded)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("grpo"))


@pytest.fixture(params=list(OBJECTIVES.values()), ids=list(OBJECTIVES))
def trainer(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Any]:
    made = lab.trainer(lab.domain(request.param))
    with grouped_attention_of(made.model.get_base_model()):
        yield made


def likes_small_letters(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between the answers of a model with random weights."""
    return [sum("a" <= letter <= "z" for letter in text) / 6 for text in completions]


@pytest.mark.slow
def test_training_changes_the_adapter_alone_and_rewards_held_out_answers(trainer: Any) -> None:
    trainer.reward_funcs = [likes_small_letters]
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    rewards = {entry["step"]: entry["eval_reward"] for entry in trainer.state.log_history if "eval_reward" in entry}
    assert list(rewards) == [0, 1, 2, 3]
    assert trainer.state.best_metric == max(rewards[step] for step in (1, 2, 3))
    assert trainer.equal_groups.num_groups == 3 * 8 // trainer.num_generations


def test_prompts_are_those_of_a_server(lab: Lab) -> None:
    task = lab.task(lab.domain(OBJECTIVES["grpo"]))
    row = lab.rows["train"][0]
    data = Reinforcement().encode(task)
    assert tuple(data.train[0]["prompt"]) == encode_prompt(task.tokenizer, row.prompt, RENDERED_AT)
    assert [data.train[0]["number"], data.validation[0]["number"]] == [0, len(lab.rows["train"])]


def test_packed_logprobs_and_gradients_equal_those_of_trl(trainer: Any) -> None:
    torch.manual_seed(1)
    prompts = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8]]
    ids = torch.tensor([[*([0] * (4 - len(p))), *p, *torch.randint(3, 200, (5,)).tolist()] for p in prompts])
    mask = torch.tensor([[1] * 9, [0] + [1] * 6 + [0] * 2, [1] * 8 + [0]])
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]

    def computed() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        logprobs, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, 5, compute_entropy=True
        )
        return logprobs, entropies, list(torch.autograd.grad(logprobs.square().sum(), weights))

    packed = computed()
    assert trainer._packing._equal_up_to == 9
    trainer._packing._is_unequal = True
    own = computed()
    torch.testing.assert_close(packed, own, atol=1e-4, rtol=1e-3)
    assert not torch.equal(packed[2][0], own[2][0])  # by another way


def test_a_packing_that_differs_is_not_used(trainer: Any, caplog: pytest.LogCaptureFixture) -> None:
    ids = torch.randint(3, 200, (2, 9))
    from train.objectives.policy_trainers import SampledBatch

    def own(rows: slice) -> torch.Tensor:
        return torch.full((2, 5), 99.0)

    batch = SampledBatch(ids, torch.ones_like(ids), 5)
    assert not trainer._packing.is_equal(trainer.model.get_base_model(), batch, own, trainer.accelerator.autocast)
    assert "packed log-probabilities are not used" in caplog.text


def test_sampled_answers_follow_the_distribution(trainer: Any) -> None:
    from train.objectives.policy_trainers import Sampled

    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, -1.0]]).repeat(20_000, 1)
    counts = torch.bincount(Sampled(0.5)(logits, []), minlength=3) / 20_000
    torch.testing.assert_close(counts, (logits[0] / 0.5).softmax(-1), atol=0.01, rtol=0)


def test_answers_end_at_the_stop_string(lab: Lab) -> None:
    trainer = lab.trainer(lab.domain(OBJECTIVES["grpo"]))
    trainer.stop = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
    prompts = [list(encode_prompt(trainer.processing_class, row.prompt, RENDERED_AT)) for row in lab.rows["train"]]
    answers, _ = trainer._generate_single_turn(prompts)
    texts = trainer.processing_class.batch_decode(answers, skip_special_tokens=True)
    assert not any(letter in text[:-1] for text in texts for letter in trainer.stop)


@pytest.mark.slow
def test_equal_rewards_are_warned_of_and_told(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    trainer = lab.trainer(lab.domain(OBJECTIVES["rloo"], recipe=lab.plain.recipe.model_dump(mode="json")))
    trainer.args.logging_steps = 1
    trainer.reward_funcs = [lambda completions, **_: [0.0] * len(completions)]
    with grouped_attention_of(trainer.model.get_base_model()), caplog.at_level(logging.INFO):
        trainer.train()
    assert "in 100% of the groups all answers have the same reward" in caplog.text
    assert "12 of 12 groups had answers of equal reward" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["grpo with a reference", "rloo"])
def test_a_started_adapter_is_trained_beside_its_frozen_copy(lab: Lab, objective: str) -> None:
    def weights(model: torch.nn.Module, adapter: str) -> dict[str, torch.Tensor]:
        named = model.named_parameters()
        return {n.replace(adapter, ""): p.detach().clone() for n, p in named if f".{adapter}." in n}

    def train(checkpoint: str | None = None) -> PeftModel:
        trainer = lab.trainer(lab.domain(OBJECTIVES[objective]), is_started=True)
        trainer.reward_funcs = [likes_small_letters]
        trainer.remove_callback(EarlyStoppingCallback)
        trainer.args.load_best_model_at_end = False  # the last weights are compared
        trainer.args.save_total_limit = None
        with grouped_attention_of(trainer.model.get_base_model()):
            trainer.train(resume_from_checkpoint=checkpoint)
        trained: PeftModel = trainer.model
        return trained

    start = weights(lab.trainer(lab.domain(OBJECTIVES[objective]), is_started=True).model, "default")
    model = train()
    torch.testing.assert_close(weights(model, "ref"), start, atol=0, rtol=0)
    whole = weights(model, "default")
    assert any(not torch.equal(whole[name], start[name]) for name in start)
    torch.testing.assert_close(weights(train(str(lab.root / "run" / "checkpoint-2")), "default"), whole)
    drop_reference(model)
    assert list(model.peft_config) == ["default"]


def test_prompts_alone_are_rewarded_and_fingerprinted(lab: Lab) -> None:
    schema = {"enum": ["red", "green", "blue"]}
    objective = {"name": "grpo", "num_generations": 4, "reward_weights": {"exact_match": 0, "valid_format": 1}}
    task = lab.task(lab.domain(objective, answer={"json_schema": schema}))
    bare = {split: [prompt_row(row) for row in rows] for split, rows in lab.rows.items()}
    alone = replace(task, rows=bare)
    data = Reinforcement().encode(alone)
    assert data.train["prompt"] == Reinforcement().encode(lab.task(lab.domain(OBJECTIVES["grpo"]))).train["prompt"]
    assert Reinforcement().questions(alone) == []
    golden = Reinforcement().golden(alone)
    assert [row.prompt for row in golden] == [row.messages for row in bare["test"][:6]]
    assert Reinforcement().num_answers(alone) == 16


def prompt_row(row: Any) -> PromptRow:
    return PromptRow(messages=row.prompt, input=row.input)


def test_a_published_reward_model_scores_the_answers(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    class Liking:
        def score(self, prompts: Any, answers: list[str], at: datetime) -> list[float]:
            assert at == RENDERED_AT
            return [len(prompt) + len(answer) / 10 for prompt, answer in zip(prompts, answers, strict=True)]

    asked = []

    def load(version_folder: Path, base_folder: Path) -> Liking:
        asked.append((version_folder, base_folder))
        return Liking()

    monkeypatch.setattr(RewardScorer, "load", load)
    task = lab.task(lab.domain(OBJECTIVES["grpo"] | {"reward_model": "liking@1"}))
    folder = lab.root / "liking"
    version: Any = SimpleNamespace(folder=folder)
    reward = reward_of(replace(task, versions={"liking@1": version}))
    question = question_of(lab.rows["test"][0])
    assert reward.of([question], [question.expected or ""]) == [1 + 2 + len(question.expected or "") / 10]
    assert asked == [(folder, lab.home.bases / "tiny")]


def test_a_version_that_gives_answers_is_no_reward_model() -> None:
    spec = LoraSpec(lora_r=4, lora_alpha=8, target_modules=("q_proj",), num_modules=2)
    version: Any = SimpleNamespace(lora_name="medical@1", lora=spec)
    with pytest.raises(RecipeError, match="'medical@1', which gives answers and no scores"):
        check_reward_model(version)


def test_mean_reward_of_base_and_adapter_on_held_out_prompts(lab: Lab) -> None:
    config = lab.domain(OBJECTIVES["grpo"])
    base = load_causal_lm(lab.home.bases / "tiny")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert isinstance(model, PeftModel)
    score = Reinforcement().evaluate(lab.task(config), model.eval(), lambda count: None)["reward"]
    assert score.base is not None
    assert (score.base.n, score.adapter.n) == (8, 8)
    assert score.adapter.value == score.base.value == 0.0


def test_a_reward_that_cannot_tell_is_refused_before_the_base_loads(lab: Lab) -> None:
    weights = {"exact_match": 0, "valid_format": 1}
    with pytest.raises(RecipeError, match="cannot tell right answers from wrong ones"):
        Reinforcement().encode(lab.task(lab.domain({"name": "grpo", "reward_weights": weights})))


def test_an_answer_as_long_as_an_example_is_refused(lab: Lab) -> None:
    with pytest.raises(RecipeError, match=r"`recipe\.max_length` 128 must exceed the 128 tokens"):
        Reinforcement().encode(lab.task(lab.domain({"name": "grpo", "max_completion_length": 128})))


def test_a_prompt_too_long_for_its_answer_is_named(lab: Lab) -> None:
    data = lab.plain.data.model_dump(mode="json") | {"cut_long_inputs": "error"}
    config = lab.domain({"name": "grpo", "max_completion_length": 120}, data=data)
    with pytest.raises(DataError, match=r"but `recipe\.max_length` is 128"):
        Reinforcement().encode(lab.task(config))


@pytest.mark.slow
def test_the_reward_rises_in_thirty_steps(tmp_path: Path) -> None:
    lab = Lab(tmp_path, initializer_range=0.2)
    recipe = lab.plain.recipe.model_dump(mode="json") | {"max_steps": 30, "eval_steps": 30, "learning_rate": 0.01}
    trainer = lab.trainer(lab.domain(OBJECTIVES["grpo"] | {"num_generations": 8}, 32, recipe=recipe))
    trainer.args.logging_steps = 1
    trainer.reward_funcs = [likes_small_letters]
    with grouped_attention_of(trainer.model.get_base_model()):
        trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 30
    assert sum(rewards[-10:]) / 10 > sum(rewards[:5]) / 5 + 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(objective, id=name, marks=() if name == "grpo" else pytest.mark.exhaustive)
        for name, objective in OBJECTIVES.items()
    ],
)
def test_a_version_is_published_with_its_reward(lab: Lab, objective: dict[str, Any]) -> None:
    manifest = train_and_publish(lab.domain(objective), lab.home).manifest
    reward = manifest.scores["reward"]
    assert reward.base is not None
    assert reward.adapter.n == reward.base.n == 8
    assert manifest.evaluation is not None
    assert manifest.training is not None
    metrics = manifest.training.metrics
    assert {"eval_reward", "eval_reward_step_0", "eval_reward_step_3"} <= metrics.keys()
    assert manifest.training.arguments["objective"]["name"] == objective["name"]


@pytest.mark.slow
def test_a_version_and_a_reward_model_go_into_another(lab: Lab, tmp_path: Path) -> None:
    train_and_publish(objective_domain(tmp_path, {"name": "reward"}, name="liking"), lab.home)
    first = train_and_publish(objective_domain(tmp_path, {"name": "sft"}, name="first"), lab.home).manifest
    objective = OBJECTIVES["grpo with a reference"] | {"reward_model": "liking@1"}
    start: dict[str, Any] = {"from": "first@1"}
    outcome = train_and_publish(lab.domain(objective, **start), lab.home)
    assert outcome.manifest.started_from is not None
    assert outcome.manifest.started_from.digest == first.digest
    assert outcome.manifest.scores["reward"].adapter.value != 0
    assert not (outcome.folder / "ref").exists()


@pytest.mark.slow
def test_a_version_of_prompts_alone_is_published_with_a_fingerprint(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "item {n} is {n % 3}"}}\n' for n in range(60)))
    objective = {"name": "rloo", "reward_weights": {"exact_match": 0, "valid_format": 1}}
    data = lab.plain.data.model_dump(mode="json") | {"path": str(path), "layout": "prompt_only"}
    config = lab.domain(objective, name="bare", data=data, answer={"json_schema": {"type": "integer"}})
    shown = io.StringIO()
    outcome = train_and_publish(config, lab.home, console=Console(file=shown))
    assert outcome.manifest.evaluation is None
    assert list(outcome.manifest.scores) == ["reward"]
    assert outcome.reason.startswith("gates passed: gain of reward +0.000")
    fingerprint = read_fingerprint(outcome.folder)
    assert fingerprint is not None
    assert len(fingerprint.prompts) == 6
    assert "16 of 16 answers" in shown.getvalue()
