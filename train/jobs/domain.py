"""What a job becomes: a domain, from the job's files, its method and hyperparameters, and its own recipe, if any.

What neither sets is proposed from the files, as `lorikeet init` does: that is what `auto` stands for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from adapters.jobs.models import ModelNames
from adapters.jobs.records import Job
from config.domain import DomainConfig
from config.errors import ConfigError
from config.load import validate
from config.objective import ReinforcementObjective
from train.data.examples import Example
from train.data.propose import MAX_STEPS, MIN_STEPS, NUM_EPOCHS, propose
from train.data.splits import DEFAULT_NUM_TEST, DEFAULT_NUM_VALIDATION
from train.jobs.errors import InvalidJobError
from train.jobs.examples import JobFiles, layout_of, read_examples
from train.jobs.recipe import check_alias, check_settings, number, read_recipe, section
from train.methods.table import served_as

_OBJECTIVES = {"supervised": "sft", "dpo": "dpo", "reinforcement": "grpo"}
_NUM_GENERATIONS = 8
_PROMPTS_PER_STEP = 2
_ANSWER_TOKENS = 64
"""Of a sampled answer, where the rows have none to measure."""


@dataclass(frozen=True)
class GraderPlace:
    """The server whose models graders ask.

    Attributes:
        api_key_env: Environment variable that holds its API key.
    """

    url: str | None = None
    api_key_env: str | None = None


NO_GRADERS = GraderPlace()


def domain_values(
    job: Job,
    files: JobFiles,
    tokenizer: PreTrainedTokenizerBase,
    names: ModelNames,
    graders: GraderPlace = NO_GRADERS,
) -> dict[str, Any]:
    """Values of the job's domain, as a YAML file would have them.

    Args:
        tokenizer: Of the base.
        names: Tell whose adapters a recipe may name.
        graders: Where models of `score_model` graders are asked.

    Raises:
        InvalidJobError: Its files, hyperparameters or recipe cannot be used.
        DataError: Nothing trains on rows of this kind.
    """
    recipe = read_recipe(job)
    check_alias(job)
    training, validation = read_examples(job, files)
    values = _merged(_proposed(job, training, tokenizer), recipe)
    values |= {"name": job.adapter, "base": job.base, "from": job.from_version}
    values["data"] = _merged(section(values, "data"), _data(job, files, len(training)))
    values["evaluation"] = _merged({"forgetting": {"other_domains": "none"}}, section(values, "evaluation"))
    values["gates"] = _merged(section(values, "gates"), section(job.lorikeet, "gates"))
    values["objective"] = _objective(job, values.get("objective"), graders)
    num_train = len(training) if validation else _num_train(len(training))
    values["recipe"] = _merged(section(values, "recipe"), _batch(job, values["objective"], num_train))
    config = _validated(job, values)
    check_settings(job, config, names)
    if served_as(config.method) in ("a base of its own", "not served"):
        raise InvalidJobError(
            f"`method: {config.method.name}` makes no adapter that is served beside others. Set `method: lora`.",
            "invalid_recipe",
            "lorikeet",
        )
    values["recipe"] = _merged(values["recipe"], _schedule(job, config, num_train))
    _validated(job, values)
    return values


def domain_of_values(job_id: str, values: Mapping[str, Any]) -> DomainConfig:
    """Raises:
    ConfigError: The values are not those of a domain.
    """
    return validate(values, DomainConfig, job_id)


def _proposed(job: Job, training: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What `lorikeet init` would propose."""
    objective = _OBJECTIVES[job.method["type"]]
    proposal = propose(training, tokenizer, objective)
    recipe: dict[str, Any] = {
        "max_length": proposal.max_length,
        "per_device_train_batch_size": proposal.batch_size,
        "max_steps": proposal.max_steps,
        "seed": job.seed % 2**31,
    }
    evaluation: dict[str, Any] = {"max_new_tokens": proposal.max_new_tokens}
    if objective == "grpo":
        evaluation = {"max_new_tokens": _ANSWER_TOKENS}
        recipe["max_length"] = proposal.max_length + _ANSWER_TOKENS
    schema = proposal.json_schema
    return {
        "description": f"Fine-tuned by the job {job.id}.",
        "chat": {"system": proposal.system},
        "answer": {"json_schema": schema} if schema else {},
        "recipe": recipe,
        "evaluation": evaluation,
    }


def _data(job: Job, files: JobFiles, num_rows: int) -> dict[str, Any]:
    data: dict[str, Any] = {"source": "files", "path": str(files.training), "layout": layout_of(job)}
    num_samples = _given(job).get("eval_samples")
    if files.validation is not None:
        data["held_out"] = [str(files.validation)]
    elif num_samples is not None:
        data["num_validation"] = min(int(number(num_samples, "eval_samples")), max(num_rows // 5, 1))
    return data | {"num_train": num_rows}


def _objective(job: Job, recipe: Any, graders: GraderPlace) -> dict[str, Any]:
    """The method's objective, with the settings that the recipe has for it."""
    method = job.method["type"]
    chosen: dict[str, Any] = (
        {"name": recipe} if isinstance(recipe, str) else dict(section({"objective": recipe}, "objective"))
    )
    default = _OBJECTIVES[method]
    fitting = {"supervised": ("sft", "text"), "dpo": ("dpo", "orpo"), "reinforcement": ("grpo", "rloo")}[method]
    name = chosen.get("name", default)
    if name not in fitting:
        raise InvalidJobError(
            f"`objective: {name}` does not train by the method {method!r}; that takes {' or '.join(fitting)}.",
            "invalid_recipe",
            "lorikeet",
        )
    chosen["name"] = name
    hyper = _given(job)
    if method == "dpo" and "beta" in hyper:
        chosen["beta"] = hyper["beta"]
    if method == "reinforcement":
        place = {"grader_url": graders.url, "grader_api_key_env": graders.api_key_env}
        chosen |= {"grader": job.method["reinforcement"]["grader"]} | place
        multiplier = number(hyper.get("compute_multiplier", 1), "compute_multiplier")
        chosen.setdefault("num_generations", max(round(_NUM_GENERATIONS * multiplier), 2))
    return chosen


def _batch(job: Job, objective: Mapping[str, Any], num_train: int) -> dict[str, Any]:
    """The recipe's batch; `batch_size` of reinforcement counts prompts, of which each gets several answers."""
    hyper, num_generations = _given(job), int(number(objective.get("num_generations", 1), "num_generations"))
    if "batch_size" in hyper:
        size = int(number(hyper["batch_size"], "batch_size"))
    elif num_generations > 1 and "per_device_train_batch_size" not in section(read_recipe(job), "recipe"):
        size = min(_PROMPTS_PER_STEP, num_train)
    else:
        return {}
    return {"per_device_train_batch_size": size * num_generations, "gradient_accumulation_steps": 1}


def _schedule(job: Job, config: DomainConfig, num_train: int) -> dict[str, Any]:
    """The recipe's steps and rate for what the job sets; `auto` keeps those of the recipe, or of the proposal."""
    hyper, recipe, own = _given(job), config.recipe, section(read_recipe(job), "recipe")
    num_generations = config.objective.num_generations if isinstance(config.objective, ReinforcementObjective) else 1
    rows_per_step = max(recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps // num_generations, 1)
    max_steps = recipe.max_steps
    if "n_epochs" in hyper:
        max_steps = max(math.ceil(num_train * number(hyper["n_epochs"], "n_epochs") / rows_per_step), 1)
    elif "max_steps" not in own:
        max_steps = min(max(math.ceil(num_train * NUM_EPOCHS / rows_per_step), MIN_STEPS), MAX_STEPS)
    schedule: dict[str, Any] = {"max_steps": max_steps}
    if "learning_rate_multiplier" in hyper:
        schedule["learning_rate"] = recipe.learning_rate * number(
            hyper["learning_rate_multiplier"], "learning_rate_multiplier"
        )
    if "eval_interval" in hyper:
        schedule["eval_steps"] = min(int(number(hyper["eval_interval"], "eval_interval")), max_steps)
    elif "eval_steps" not in own:
        schedule["eval_steps"] = math.ceil(max_steps / 4)
    return schedule


def _given(job: Job) -> dict[str, Any]:
    """Hyperparameters that are not `auto`."""
    hyper = job.method.get(job.method["type"], {}).get("hyperparameters") or {}
    return {key: value for key, value in hyper.items() if value not in (None, "auto")}


def _num_train(num_rows: int) -> int:
    """Rows that the splits leave, about: a fifth is held out for testing, a tenth for early stopping."""
    test = min(DEFAULT_NUM_TEST, max(round(num_rows / 5), 1))
    return max(num_rows - test - min(DEFAULT_NUM_VALIDATION, max(round(num_rows / 10), 1)), 1)


def _validated(job: Job, values: Mapping[str, Any]) -> DomainConfig:
    try:
        return domain_of_values(job.id, values)
    except ConfigError as error:
        raise InvalidJobError(str(error), "invalid_hyperparameters", "method") from error


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `over` in place of those of `under`; sections are merged key by key, but for those that have a name."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        is_section = isinstance(value, Mapping) and isinstance(below, Mapping) and key not in ("objective", "method")
        merged[key] = _merged(below, value) if is_section else value  # type: ignore[arg-type]
    return merged
