"""The recipe's settings of the optimizer and the schedule."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from config.training import Optimizer, RecipeConfig, Scheduler
from tests.tiny_architectures import tiny_model
from train.compute import unmeasured
from train.errors import RecipeError
from train.objectives.arguments import check_arguments, is_checkpointed, shared_arguments

on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU lacks")


def recipe_of(**recipe: object) -> RecipeConfig:
    return RecipeConfig.model_validate(recipe)


def test_every_name_is_one_of_transformers() -> None:
    assert set(get_args(Optimizer)) - {"auto"} <= {name.value for name in OptimizerNames}
    assert set(get_args(Scheduler)) <= {name.value for name in SchedulerType}


@pytest.mark.parametrize("name", sorted(set(get_args(Scheduler)) - {"warmup_stable_decay"}))
def test_a_schedule_needs_no_more_than_its_name(name: str) -> None:
    needed = {"min_lr_rate": 0.1} if "min_lr" in name else {}
    check_arguments(recipe_of(lr_scheduler_type=name, lr_scheduler_kwargs=needed))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("cosine_with_min_lr", {}),
        ("cosine", {"min_lr": 1e-5}),
        ("warmup_stable_decay", {}),
        ("polynomial", {"lr_end": 1.0}),
        ("cosine", {"num_cycles": "many"}),
    ],
)
def test_a_schedule_with_wrong_settings_is_refused(name: str, kwargs: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=rf"lr_scheduler_type: {name}.* cannot be used with"):
        check_arguments(recipe_of(lr_scheduler_type=name, lr_scheduler_kwargs=kwargs))


def test_a_rate_that_yaml_takes_for_a_text_is_a_number() -> None:
    recipe = recipe_of(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": "1e-5"})
    assert recipe.lr_scheduler_kwargs == {"min_lr": 1e-5}


@on_a_cpu
@pytest.mark.parametrize("name", ["paged_adamw_8bit", "adamw_8bit", "lion_8bit"])
def test_an_optimizer_of_a_gpu_is_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(RecipeError, match=f"optim: {name}` requires a CUDA GPU, .* Use `auto`"):
        check_arguments(recipe_of(optim=name))


@on_a_cpu
def test_the_optimizer_is_chosen_by_the_machine(tmp_path: Path) -> None:
    arguments = shared_arguments(recipe_of(), tmp_path, unmeasured(), tiny_model("llama"))
    assert arguments["optim"] == "adamw_torch_fused"


@pytest.mark.parametrize(
    ("setting", "max_length", "is_on"),
    [("auto", 256, False), ("auto", 10**9, True), (True, 256, True), (False, 10**9, False)],
)
def test_activations_are_computed_twice_by_need(setting: bool | str, max_length: int, is_on: bool) -> None:
    recipe = recipe_of(gradient_checkpointing=setting, max_length=max_length)
    assert is_checkpointed(recipe, tiny_model("llama")) is is_on


def test_the_best_checkpoint_is_of_the_highest_score_or_lowest_loss(tmp_path: Path) -> None:
    def arguments(metric: str) -> tuple[object, object]:
        found = shared_arguments(recipe_of(metric_for_best_model=metric), tmp_path, unmeasured(), tiny_model("llama"))
        return found["metric_for_best_model"], found["greater_is_better"]

    assert arguments("eval_loss") == ("eval_loss", False)
    assert arguments("exact_match") == ("eval_exact_match", True)
