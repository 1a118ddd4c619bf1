from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from config.graders import GraderConfig, MultiGrader, ScoreModelGrader, single_graders, templates_of
from config.objective import GrpoObjective

ADAPTER: TypeAdapter[GraderConfig] = TypeAdapter(GraderConfig)
CHECK = {
    "type": "string_check",
    "name": "right",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference_answer }}",
}
JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "base",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Grade "}, "{{ sample.output_text }}"]}],
}


def multi(graders: Any, formula: str = "right") -> dict[str, Any]:
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


@pytest.mark.parametrize("graders", [{"right": CHECK}, [CHECK], CHECK])
def test_a_multi_grader_takes_each_form_of_clients(graders: Any) -> None:
    grader = ADAPTER.validate_python(multi(graders))
    assert isinstance(grader, MultiGrader)
    assert [one.name for one in single_graders(grader)] == ["right"]


def test_parts_of_a_message_are_joined() -> None:
    grader = ADAPTER.validate_python(JUDGE)
    assert isinstance(grader, ScoreModelGrader)
    assert templates_of(grader) == ("Grade {{ sample.output_text }}",)
    assert grader.range == (0.0, 1.0)


@pytest.mark.parametrize(
    ("grader", "problem"),
    [
        (CHECK | {"input": "{{ answer }}"}, "must be a path"),
        (CHECK | {"operation": "regex"}, "operation"),
        (
            {"type": "text_similarity", "name": "s", "input": "", "reference": "", "evaluation_metric": "meteor"},
            "evaluation_metric",
        ),
        (JUDGE | {"range": [1, 0]}, "lower and a higher"),
        (JUDGE | {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "images"),
        (multi({"right": CHECK}, "left"), "names 'left'"),
        (multi({}), "at least 1"),
        ({"type": "python", "name": "p", "source": "1"}, "python"),
    ],
)
def test_what_cannot_be_graded_is_refused(grader: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ADAPTER.validate_python(grader)


def test_a_grader_alone_is_the_reward() -> None:
    objective = GrpoObjective.model_validate({"grader": CHECK})
    assert objective.reward_weights.exact_match == 0
    both = GrpoObjective.model_validate({"grader": CHECK, "reward_weights": {"exact_match": 0.5}})
    assert both.reward_weights.exact_match == 0.5


def test_a_grading_model_needs_an_endpoint() -> None:
    with pytest.raises(ValidationError, match=r"`grader_url` must name .* 'judge'"):
        GrpoObjective.model_validate({"grader": multi([JUDGE], "judge")})
