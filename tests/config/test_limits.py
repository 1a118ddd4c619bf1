"""A limit that is set alone works: the defaults of others follow it; only two values that were set contradict."""

from collections.abc import Iterator
from types import UnionType
from typing import Any, cast, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError

from config.domain import DomainConfig
from config.loadtest import LoadtestConfig
from config.model import Config
from config.serve import ServeConfig

SERVE = {"base": "tiny"}
DOMAIN = {"name": "a", "description": "A.", "data": {"source": "icd10cm"}, "chat": {"system": "Be brief."}}
LOADTEST = {
    "mix": {"models": ["a"], "popularity": {"kind": "zipf"}},
    "arrival": {"kind": "poisson"},
    "prompts": {"kind": "synthetic", "num_words": {"kind": "fixed", "value": 1}},
}


def lowest(bound: Ge | Gt) -> float:
    return cast(float, bound.ge) if isinstance(bound, Ge) else cast(float, bound.gt) + 0.5


def highest(bound: Le | Lt) -> float:
    return cast(float, bound.le) if isinstance(bound, Le) else cast(float, bound.lt) - 0.01


def bounds(metadata: list[Any]) -> tuple[float, float] | None:
    """The lowest and the highest value of a number worth trying; None where a field has no lower bound."""
    low = next((lowest(m) for m in metadata if isinstance(m, (Ge, Gt))), None)
    if low is None:
        return None
    high = next((highest(m) for m in metadata if isinstance(m, (Le, Lt))), None)
    return low, (1000 * max(low, 100) if high is None else high)


def limits_of(model: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Each bounded number of a model and of those within it: its path, and its lowest and highest value."""
    for name, field in model.model_fields.items():
        types = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
        inner = next((t for t in types if isinstance(t, type) and issubclass(t, Config)), None)
        if inner is not None:
            yield from (((name, *path), value) for path, value in limits_of(inner))
        elif found := bounds(field.metadata):
            is_whole = int in types
            yield from (((name,), int(value) if is_whole else min(value, found[1])) for value in found)


def with_value(required: dict[str, Any], path: tuple[str, ...], value: float) -> dict[str, Any]:
    """What a file with the required keys and this one says."""
    head, *rest = path
    inner = with_value(required.get(head, {}), tuple(rest), value) if rest else value
    return required | {head: inner}


def problem_of(model: type[Config], values: dict[str, Any]) -> str | None:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("model", "required"), [(ServeConfig, SERVE), (DomainConfig, DOMAIN), (LoadtestConfig, LOADTEST)]
)
def test_every_limit_may_be_set_alone(model: type[Config], required: dict[str, Any]) -> None:
    limits = [
        (path, value)
        for path, value in limits_of(model)
        if path[:2] != ("quality", "judge") and path[-1] != "base_share"  # these need a name beside them
    ]
    assert len(limits) > 10
    problems = {limit: problem_of(model, with_value(required, *limit)) for limit in limits}
    assert {limit: problem for limit, problem in problems.items() if problem} == {}


@pytest.mark.parametrize(
    ("changes", "followed"),
    [
        ({"max_model_len": 256}, {"default_max_tokens": 256}),
        ({"limits": {"max_tokens": 100}}, {"default_max_tokens": 100}),
        ({"max_model_len": 256, "limits": {"max_tokens": 100}}, {"default_max_tokens": 100}),
        ({"max_model_len": 4096}, {"default_max_tokens": 512}),
        ({"limits": {"default_max_tokens": 4096}}, {"max_tokens": 4096, "max_model_len": 4096}),
        ({"limits": {"max_tokens": 100, "default_max_tokens": 7}}, {"default_max_tokens": 7}),
        ({"max_loras": 100}, {"max_loras": 100, "max_cpu_loras": 100}),
        ({"max_loras": 4}, {"max_loras": 4, "max_cpu_loras": 64}),
        ({"max_cpu_loras": 4}, {"max_loras": 4, "max_cpu_loras": 4}),
        ({"max_num_seqs": 4096}, {"max_num_seqs": 4096, "max_num_batched_tokens": 4096}),
        ({"max_num_batched_tokens": 16}, {"max_num_seqs": 16, "max_num_batched_tokens": 16}),
    ],
)
def test_the_defaults_follow_what_is_set(changes: dict[str, Any], followed: dict[str, int]) -> None:
    config = ServeConfig.model_validate(SERVE | changes)
    values = config.model_dump() | config.limits.model_dump()
    assert {key: values[key] for key in followed} == followed


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"max_model_len": 256, "limits": {"default_max_tokens": 300}},
            "limits.default_max_tokens 300 must be at most max_model_len 256",
        ),
        ({"limits": {"max_tokens": 9, "default_max_tokens": 10}}, "default_max_tokens 10 must be at most max_tokens 9"),
        ({"max_loras": 100, "max_cpu_loras": 64}, "max_cpu_loras 64 must be at least max_loras 100"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "max_num_batched_tokens 32 must be at least max_num_seqs"),
    ],
)
def test_two_values_that_were_set_may_contradict(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ServeConfig.model_validate(SERVE | changes)


def test_one_configuration_does_not_change_the_defaults_of_the_next() -> None:
    ServeConfig.model_validate(SERVE | {"max_model_len": 256})
    assert ServeConfig.model_validate(SERVE).limits.default_max_tokens == 512
