"""Keys that a client's recipe may not set: files, programs and network of the server, and data of other tenants."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from adapters.errors import InvalidReferenceError
from adapters.jobs.models import ModelNames
from adapters.jobs.records import Job
from adapters.reference import parse_alias
from config.domain import DomainConfig
from config.objective import ReinforcementObjective
from quality.metrics.settings import JudgeSettings, PythonMetric
from train.jobs.errors import InvalidJobError

_REFUSED = {
    "name": "the job's suffix is its name",
    "base": "the job's `model` is its base",
    "from": "name the version as the job's `model`",
    "documents": "a job reads its own files only",
    "data.source": "a job reads its own files only",
    "data.path": "a job reads its own files only",
    "data.held_out": "give a `validation_file`",
    "data.benchmarks": "a job reads its own files only",
    "data.replay": "a job reads its own files only",
    "evaluation.forgetting.other_domains": "a job cannot use other domains",
    "objective.grader": "set `grader` in the job's `method`",
    "objective.grader_url": "graders ask models of this server only",
    "objective.grader_api_key_env": "graders ask models of this server only",
    "recipe.report_to": "a job reports its own events",
    "recipe.seed": "set the job's `seed`",
}
"""Refused keys with the reason."""
_MAX_NODES = 10_000
_LARGEST = 1e18


def read_recipe(job: Job) -> dict[str, Any]:
    """The client's domain, a mapping or the text of a YAML file, without keys that only an operator may set.

    Raises:
        InvalidJobError: It is neither, or has such a key.
    """
    recipe = job.lorikeet.get("domain") or {}
    try:
        recipe = yaml.safe_load(recipe) if isinstance(recipe, str) else recipe
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(f"`domain` must be YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise _invalid(f"`domain` must be a mapping of a domain's keys; got {type(recipe).__name__}")
    _check_size(recipe)
    for path in _paths(recipe):
        if (reason := _REFUSED.get(path)) is not None:
            raise _refusal(path, reason)
    return dict(recipe)


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a domain that is a mapping; {} if there is none.

    Raises:
        InvalidJobError: It is something else.
    """
    found = values.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise _invalid(f"`{key}` must be a mapping; got {str(found)[:80]!r}")
    return found


def number(value: Any, name: str) -> float:
    """Raises InvalidJobError if the value is not a finite number."""
    if (
        isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST
    ):  # also refuses NaN and integers too large for a float
        got = str(value)[:80]
        raise InvalidJobError(f"`{name}` must be a number; got {got!r}", "invalid_hyperparameters", "method")
    return value


def check_alias(job: Job) -> None:
    """Raises:
    InvalidJobError: `alias` is not a valid alias.
    """
    alias = job.lorikeet.get("alias")
    try:
        if alias is not None:
            parse_alias(job.adapter, str(alias))
    except InvalidReferenceError as error:
        raise _invalid(f"`alias`: {error}") from None


def check_settings(job: Job, config: DomainConfig, names: ModelNames) -> None:
    """Refuse values that would run a program, ask a judge, or reveal other tenants' data.

    Raises:
        InvalidJobError: A value is refused.
    """
    metrics = (*config.evaluation.metrics, config.evaluation.metric)
    if any(isinstance(metric, PythonMetric | JudgeSettings) for metric in metrics):
        raise _refusal("evaluation.metrics", "only operators may use metrics that run programs or ask a judge")
    robustness = config.evaluation.robustness
    if robustness is not None and "neighbouring_domain" in robustness.perturbations:
        raise _refusal("evaluation.robustness", "name the `perturbations`, without neighbouring_domain")
    objective = config.objective
    reward_model = objective.reward_model if isinstance(objective, ReinforcementObjective) else None
    if reward_model is not None and names.owner_of(reward_model.partition("@")[0]) != job.owner:
        raise _refusal("objective.reward_model", "it must be a version of your own jobs")


def _paths(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{above}{key}.")


def _check_size(recipe: Mapping[str, Any]) -> None:
    """Limit the number of values: YAML aliases can expand a short text without bound."""
    nodes: list[Any] = [recipe]
    for _ in range(_MAX_NODES):
        if not nodes:
            return
        node = nodes.pop()
        nodes += node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    raise _invalid(f"`domain` must have at most {_MAX_NODES:,} values")


def _invalid(message: str) -> InvalidJobError:
    return InvalidJobError(message, "invalid_recipe", "lorikeet")


def _refusal(path: str, reason: str) -> InvalidJobError:
    return _invalid(f"`domain.{path}` cannot be set in a job: {reason}. Leave it out.")
