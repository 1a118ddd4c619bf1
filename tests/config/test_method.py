from typing import Any, get_args

import pytest
from pydantic import ValidationError

from config.method import MethodConfig
from config.training import TrainingConfig

METHODS = get_args(get_args(MethodConfig)[0])


def of(method: Any, **recipe: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"method": method, "recipe": recipe})


@pytest.mark.parametrize("model", METHODS, ids=lambda model: model.__name__)
def test_each_methods_name_alone_is_a_method(model: type) -> None:
    name = model.model_fields["name"].default  # type: ignore[attr-defined]  # a pydantic model
    assert type(of(name).method) is model


@pytest.mark.parametrize(
    ("method", "rate"), [("lora", 1e-3), ("full", 1e-4), ("vera", 1e-2), ("ia3", 3e-3), ("prompt_tuning", 3e-2)]
)
def test_a_method_has_a_default_rate_of_its_own(method: str, rate: float) -> None:
    assert of(method).recipe.learning_rate == pytest.approx(rate)
    assert of(method, learning_rate=0.5).recipe.learning_rate == 0.5


def test_a_default_rate_follows_objective_and_method() -> None:
    config = TrainingConfig.model_validate({"objective": "dpo", "method": "full"})
    assert config.recipe.learning_rate == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "vera", "lora_alpha": 3}, "lora_alpha"),
        ({"name": "full", "r": 4}, "r"),
        ({"name": "adalora"}, "adalora"),
        ({"name": "lora", "init_lora_weights": "magic"}, "pissa.*got 'magic'"),
        ({"name": "lora", "init_lora_weights": "pissa_niter_x"}, "got 'pissa_niter_x'"),
        ({"name": "lora", "init_lora_weights": "olora_niter_4"}, "got 'olora_niter_4'"),
        ({"name": "lora", "alpha_pattern": {"q_proj": -3}}, "greater than 0"),
        ({"name": "fourierft", "scaling": float("inf")}, "finite"),
        ({"name": "lokr", "convert_rank": 1.5}, "share of at most 1; got 1.5"),
        ({"name": "lokr", "convert_rank": 0}, "convert_rank"),
    ],
)
def test_what_a_method_does_not_know_is_refused(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        of(method)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("seed", -1, "greater than or equal to 0"), ("seed", 2**40, "less than"), ("learning_rate", "inf", "finite")],
)
def test_numbers_that_no_library_takes_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        of("lora", **{key: value})
