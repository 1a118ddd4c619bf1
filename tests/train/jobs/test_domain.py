"""What a job becomes."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from adapters.jobs.models import ModelNames
from adapters.jobs.records import Job
from config.domain import DomainConfig
from config.graders import StringCheckGrader
from config.objective import DpoObjective, GrpoObjective
from tests.jobs_on_disk import (
    SUPERVISED,
    TINY_RECIPE,
    JobsOnDisk,
    chat_lines,
    jobs_on_disk,
    preference_lines,
    reinforcement_lines,
)
from tests.tiny_llama import tiny_tokenizer
from train.data.examples import Example
from train.data.sources import read_source
from train.jobs.domain import GraderPlace, domain_of_values, domain_values
from train.jobs.errors import InvalidJobError
from train.jobs.examples import JobFiles
from train.jobs.folder import JobHome

GRADER = {
    "type": "string_check",
    "name": "right",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
    "operation": "eq",
}


@pytest.fixture
def disk(tmp_path: Path) -> JobsOnDisk:
    return jobs_on_disk(tmp_path)


def linked(disk: JobsOnDisk, job: Job) -> JobFiles:
    home = JobHome(disk.home.root, job.id)
    home.prepare()
    disk.queue.submit(job)
    paths = [
        home.link(f"{name}.jsonl", disk.files.held_path(job.id, file_id))
        for name, file_id in (("training", job.training_file), ("validation", job.validation_file))
        if file_id is not None
    ]
    return JobFiles(*paths)


def values_of(disk: JobsOnDisk, job: Job, graders: GraderPlace | None = None) -> dict[str, Any]:
    names = ModelNames(disk.database)
    try:
        return domain_values(job, linked(disk, job), tiny_tokenizer(), names, graders or GraderPlace())
    finally:
        names.close()


def domain_of(disk: JobsOnDisk, job: Job, graders: GraderPlace | None = None) -> DomainConfig:
    return domain_of_values(job.id, values_of(disk, job, graders))


def method(name: str, **hyperparameters: Any) -> dict[str, Any]:
    grader = {"grader": GRADER} if name == "reinforcement" else {}
    return {"type": name, name: {"hyperparameters": hyperparameters} | grader}


def splits(config: DomainConfig) -> dict[str, list[Example]]:
    examples = read_source(config.data, config.answer).examples
    return {name: [e for e in examples if e.split == name] for name in ("train", "validation", "test")}


def test_auto_is_what_init_would_propose(disk: JobsOnDisk) -> None:
    config = domain_of(disk, disk.job(lorikeet={}, base="other", adapter="acme-colours", from_version="acme-colours@2"))
    assert (config.name, config.base, config.from_version) == ("acme-colours", "other", "acme-colours@2")
    assert config.objective.name == "sft"
    assert config.chat.system == "Answer with one of: red, green, blue."
    assert (config.recipe.per_device_train_batch_size, config.recipe.max_steps, config.recipe.seed) == (6, 21, 7)
    assert config.recipe.learning_rate == 1e-3
    assert config.data.num_train == 60
    assert config.evaluation.forgetting.other_domains == "none"


def test_hyperparameters_replace_what_auto_proposes(disk: JobsOnDisk) -> None:
    given = method("supervised", n_epochs=2, batch_size=3, learning_rate_multiplier=0.5)
    recipe = domain_of(disk, disk.job(method=given, lorikeet={})).recipe
    assert recipe.per_device_train_batch_size == 3
    assert recipe.max_steps == 28  # 42 of 60 rows are trained on, twice
    assert recipe.eval_steps == 7
    assert recipe.learning_rate == 5e-4


def test_auto_hyperparameters_are_those_of_the_recipe(disk: JobsOnDisk) -> None:
    given = method("supervised", n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto")
    recipe = domain_of(disk, disk.job(method=given)).recipe
    assert (recipe.max_steps, recipe.per_device_train_batch_size, recipe.eval_steps) == (4, 4, 2)


def test_a_recipe_may_be_the_text_of_a_yaml_file(disk: JobsOnDisk) -> None:
    text = "recipe:\n  max_steps: 5\nanswer:\n  refusal: none of these\n"
    config = domain_of(disk, disk.job(lorikeet={"domain": text, "gates": {"min_gain": 0.25}}))
    assert config.recipe.max_steps == 5
    assert config.answer.refusal == "none of these"
    assert config.gates.min_gain == 0.25


def test_preferences_are_trained_with_the_given_beta(disk: JobsOnDisk) -> None:
    config = domain_of(disk, disk.job(preference_lines(), method=method("dpo", beta=0.3), lorikeet={}))
    assert isinstance(config.objective, DpoObjective)
    assert config.objective.beta == 0.3
    assert config.recipe.learning_rate == 1e-5
    example = read_source(config.data, config.answer).examples[0]
    assert (example.type, example.chosen[0].content) == ("preference", "red")


def test_a_reinforcement_job_rewards_by_its_grader(disk: JobsOnDisk) -> None:
    given = method("reinforcement", batch_size=3, compute_multiplier=0.5, eval_interval=5)
    config = domain_of(disk, disk.job(reinforcement_lines(), method=given, lorikeet={}))
    assert isinstance(config.objective, GrpoObjective)
    assert isinstance(config.objective.grader, StringCheckGrader)
    assert config.objective.reward_weights.exact_match == 0
    assert config.objective.num_generations == 4
    assert config.recipe.per_device_train_batch_size == 12
    assert config.recipe.eval_steps == 5
    example = read_source(config.data, config.answer).examples[0]
    assert (example.type, example.item) == ("prompt_only", {"reference_answer": "red"})


def test_grading_models_are_asked_at_the_operators_place(disk: JobsOnDisk) -> None:
    judge = {"type": "score_model", "name": "judge", "model": "base", "input": [{"role": "user", "content": "Grade."}]}
    given = {"type": "reinforcement", "reinforcement": {"grader": judge}}
    job = disk.job(reinforcement_lines(), method=given, lorikeet={})
    config = domain_of(disk, job, GraderPlace("http://127.0.0.1:8000/v1", "THE_KEY"))
    assert isinstance(config.objective, GrpoObjective)
    assert config.objective.grader_url == "http://127.0.0.1:8000/v1"
    assert config.objective.grader_api_key_env == "THE_KEY"


def test_a_validation_file_is_held_out_whole(disk: JobsOnDisk) -> None:
    validation = disk.upload(chat_lines(8, first=60))
    config = domain_of(disk, disk.job(chat_lines(30), validation_file=validation))
    assert {name: len(rows) for name, rows in splits(config).items()} == {"train": 30, "validation": 2, "test": 6}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (chat_lines(9), "has 9 examples, but must have at least 10"),
        ([*chat_lines(10), {"messages": [{"role": "user", "content": "Hi"}]}], "Line 11 .* no answer of the assistant"),
        ([*chat_lines(10), {"messages": "Hi"}], r"training.jsonl line 11: `messages`"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_refused(
    disk: JobsOnDisk, lines: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(InvalidJobError, match=problem) as refused:
        values_of(disk, disk.job(lines))
    assert refused.value.param == "training_file"


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ({"data": {"path": "/etc/passwd"}}, "domain.data.path"),
        ({"data": {"replay": ["/srv/others.jsonl"]}}, "domain.data.replay"),
        ({"documents": ["/etc"]}, "domain.documents"),
        ({"base": "secret"}, "domain.base"),
        ({"evaluation": {"metrics": ["python: score.py:run"]}}, "domain.evaluation.metrics"),
        ({"evaluation": {"metrics": [{"name": "judge", "url": "http://x/v1", "model": "m"}]}}, "evaluation.metrics"),
        ({"evaluation": {"robustness": True}}, "domain.evaluation.robustness"),
        ({"evaluation": {"forgetting": {"other_domains": ["medical"]}}}, "forgetting.other_domains"),
        ({"recipe": {"report_to": ["wandb"]}}, "domain.recipe.report_to"),
        ({"objective": "grpo"}, "`objective: grpo` does not train by the method 'supervised'"),
        ({"method": "full"}, "`method: full` makes no adapter"),
        ({"recipe": {"max_stepz": 3}}, "`recipe.max_stepz` is not a known key"),
        ("a: [", "`domain` must be YAML"),
        ("just text", "must be a mapping"),
        ({"data": []}, "`data` must be a mapping"),
        ({"recipe": "fast"}, "`recipe` must be a mapping"),
        ({"objective": 5}, "`objective` must be a mapping"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b, *c]", "at most 10,000 values"),
    ],
)
def test_a_recipe_cannot_reach_beyond_its_job(disk: JobsOnDisk, recipe: Any, problem: str) -> None:
    with pytest.raises(InvalidJobError, match=problem):
        values_of(disk, disk.job(lorikeet={"domain": recipe}))


def test_a_reward_model_must_be_the_tenants_own(disk: JobsOnDisk) -> None:
    recipe = {"objective": {"name": "grpo", "reward_model": "medical-taste@1"}}
    job = disk.job(reinforcement_lines(), method=method("reinforcement"), lorikeet={"domain": recipe})
    with pytest.raises(InvalidJobError, match=r"objective\.reward_model"):
        values_of(disk, job)


def test_invalid_hyperparameters_name_the_method(disk: JobsOnDisk) -> None:
    with pytest.raises(InvalidJobError, match="learning_rate") as refused:
        values_of(disk, disk.job(method=method("supervised", learning_rate_multiplier=-1)))
    assert (refused.value.code, refused.value.param) == ("invalid_hyperparameters", "method")


@pytest.mark.parametrize(
    ("additions", "problem"),
    [({"gates": "none"}, "`gates` must be a mapping"), ({"alias": "a b"}, "`alias`: "), ({"alias": 5}, "`alias`: ")],
)
def test_additions_of_another_form_are_refused(disk: JobsOnDisk, additions: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidJobError, match=problem):
        values_of(disk, disk.job(lorikeet=additions))


@pytest.mark.parametrize(
    "value", ["many", None, True, float("inf"), float("nan"), [1], pytest.param(10**400, id="huge")]
)
def test_a_hyperparameter_must_be_a_number(disk: JobsOnDisk, value: Any) -> None:
    """null is auto."""
    job = disk.job(method=method("supervised", n_epochs=value))
    with pytest.raises(InvalidJobError, match="n_epochs") if value is not None else nullcontext():
        values_of(disk, job)


def test_the_same_job_becomes_the_same_domain(disk: JobsOnDisk) -> None:
    job = disk.job(lorikeet={"domain": TINY_RECIPE}, method=SUPERVISED)
    home = JobHome(disk.home.root, job.id)
    values = values_of(disk, job)
    home.write_values(values)
    kept = home.read_values()
    assert kept is not None
    assert domain_of_values(job.id, kept) == domain_of_values(job.id, values)
