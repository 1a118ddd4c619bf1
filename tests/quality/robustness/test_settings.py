"""`evaluation.robustness` in a domain's YAML."""

import pytest
from pydantic import ValidationError

from config.domain import EvaluationConfig
from quality.robustness.settings import PERTURBATIONS, RobustnessConfig


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (True, RobustnessConfig()),
        ({}, RobustnessConfig()),
        (False, None),
        (None, None),
        ({"num_questions": 7}, RobustnessConfig(num_questions=7)),
    ],
)
def test_a_switch_or_settings(written: object, read: RobustnessConfig | None) -> None:
    assert EvaluationConfig.model_validate({"robustness": written}).robustness == read


def test_all_perturbations_by_default() -> None:
    assert RobustnessConfig().perturbations == PERTURBATIONS


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"perturbations": ["typo"]}, "'typos', 'casing'"),
        ({"perturbations": []}, "perturbations"),
        ({"perturbations": ["typos", "typos"]}, "once"),
        ({"num_questions": 0}, "num_questions"),
        ({"typo_rate": 0}, "typo_rate"),
        ({"synonyms": {"bill": []}}, "'bill'"),
        ({"typos": True}, "typos"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        EvaluationConfig.model_validate({"robustness": wrong})
