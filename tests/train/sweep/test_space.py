"""The search space of a domain."""

from datetime import date
from typing import Any

import pytest
from optuna.trial import FixedTrial
from pydantic import ValidationError

from config.domain import DomainConfig
from config.sweep import Range, SweepConfig
from tests.tiny_llama import tiny_domain
from train.errors import RecipeError
from train.sweep.space import each_value, space_of, suggest, with_values


def domain_with(space: dict[str, Any], tmp_path: Any) -> DomainConfig:
    sweep = SweepConfig.model_validate({"space": space})
    return tiny_domain(tmp_path / "none.jsonl").model_copy(update={"sweep": sweep})


def test_each_kind_of_setting_is_suggested(tmp_path) -> None:
    config = domain_with(
        {
            "recipe.learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
            "method.r": {"low": 2, "high": 8},
            "method.target_modules": ["all-linear", ["q_proj", "v_proj"]],
        },
        tmp_path,
    )
    fixed = {"recipe.learning_rate": 1e-3, "method.r": 4, "method.target_modules": '["q_proj", "v_proj"]'}
    values = suggest(FixedTrial(fixed), config)
    assert values == fixed | {"method.target_modules": ["q_proj", "v_proj"]}


def test_a_setting_that_the_suggested_method_lacks_is_not_drawn(tmp_path) -> None:
    config = domain_with({"method": ["lora", "dora"], "method.init_lora_weights": [True, "gaussian"]}, tmp_path)
    assert suggest(FixedTrial({"method": "dora"}), config) == {"method": "dora"}


def test_values_take_their_places_and_leave_the_rest() -> None:
    values = {"name": "a", "method": {"r": 8, "init_lora_weights": "gaussian"}, "recipe": {"seed": 3}}
    changed = with_values(values, {"method": "dora", "method.r": 4, "recipe.learning_rate": 0.01})
    assert changed == {
        "name": "a",
        "method": {"name": "dora", "r": 4},
        "recipe": {"seed": 3, "learning_rate": 0.01},
    }
    assert values["method"] == {"r": 8, "init_lora_weights": "gaussian"}


def test_a_method_given_by_its_name_keeps_it() -> None:
    assert with_values({"method": "dora"}, {"method.r": 4}) == {"method": {"name": "dora", "r": 4}}


def test_each_value_and_each_end_is_checked_before(tmp_path) -> None:
    config = domain_with({"method.r": [2, 4], "recipe.learning_rate": {"low": 0.1, "high": 0.2}}, tmp_path)
    found = [{key: value for key, value in one.items() if key != "method"} for one in each_value(config)]
    assert found == [{"method.r": 2}, {"method.r": 4}, {"recipe.learning_rate": 0.1}, {"recipe.learning_rate": 0.2}]


def test_a_setting_that_no_method_has_is_refused(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"sweep.space` has 'method\.rank', which lora lacks"):
        list(each_value(domain_with({"method.rank": [2]}, tmp_path)))


def default_space(tmp_path: Any, **settings: Any) -> dict[str, Any]:
    tiny = tiny_domain(tmp_path / "none.jsonl").model_dump(by_alias=True, exclude_unset=True)
    return space_of(DomainConfig.model_validate(tiny | {"recipe": {}} | settings))


def test_default_rates_are_around_those_of_the_objective(tmp_path) -> None:
    rates = default_space(tmp_path, objective="dpo")["recipe.learning_rate"]
    assert (rates.low, rates.high) == pytest.approx((1e-6, 3e-5))


def test_the_default_space_has_no_setting_that_the_method_lacks(tmp_path) -> None:
    assert list(default_space(tmp_path, method="full")) == ["recipe.learning_rate"]
    assert "method.r" in default_space(tmp_path, method="dora")


def test_a_continued_adapter_keeps_its_settings_by_default(tmp_path) -> None:
    assert list(default_space(tmp_path, **{"from": "medical@1"})) == ["recipe.learning_rate"]


@pytest.mark.parametrize(
    "space", [{}, {"data.num_train": [1]}, {"method.r": []}, {"recipe.learning_rate": {"low": 2, "high": 1}}]
)
def test_a_space_that_says_nothing_is_refused(space: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepConfig.model_validate({"space": space})


def test_a_logarithmic_range_begins_above_zero() -> None:
    with pytest.raises(ValidationError, match="`low` must be above 0"):
        Range(low=0, high=1, log=True)


def test_a_method_that_does_not_exist_is_left_to_the_domains_check(tmp_path) -> None:
    config = domain_with({"method": ["lora", "nope"]}, tmp_path)
    assert [one["method"] for one in each_value(config)] == ["lora", "nope"]
    assert with_values({}, {"method": "nope"}) == {"method": {"name": "nope"}}


def test_a_date_can_be_varied(tmp_path) -> None:
    day = date(2026, 11, 28)
    config = domain_with({"recipe.template_date": [day, "varied"]}, tmp_path)
    assert suggest(FixedTrial({"recipe.template_date": '"2026-11-28"'}), config) == {"recipe.template_date": day}


@pytest.mark.parametrize("name", ["recipe", "objective", "data.path"])
def test_only_single_settings_and_the_method_are_varied(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        SweepConfig.model_validate({"space": {name: [1]}})


def test_a_range_without_an_end_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        SweepConfig.model_validate({"space": {"recipe.learning_rate": {"low": 0.1, "high": float("inf")}}})
