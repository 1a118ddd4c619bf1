"""Which metrics a server can score held-out questions by."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter

from quality.errors import MetricError
from quality.metrics.item import LeftOut
from quality.metrics.served import SERVED_METRICS, check_served, scorable, score_one, served_metric
from quality.metrics.settings import MetricConfig, PlainName
from quality.metrics.table import make_metrics
from quality.scorers import AnswerFormat

CONFIG: TypeAdapter[MetricConfig] = TypeAdapter(MetricConfig)
FORMAT = AnswerFormat({"type": "object"})
SETTINGS = {"regex": {"name": "regex", "pattern": "[a-z]+"}, "python": {"python": "score.py:polite"}}
OTHERS = sorted(set(get_args(PlainName)) - set(SERVED_METRICS))


def config_of(name: str) -> MetricConfig:
    return CONFIG.validate_python(SETTINGS.get(name, name))


@pytest.mark.parametrize("name", SERVED_METRICS)
def test_a_served_metrics_scores_are_0_to_1_and_averaged(name: str) -> None:
    metric = served_metric(config_of(name), FORMAT, "no")
    assert metric.bounds == (0.0, 1.0)
    assert metric.kind in ("share", "mean")
    assert metric.higher_is_better
    score = score_one(metric, "?", '{"a": 1}', '{"a": 1}', in_scope=True)
    assert isinstance(score, float)
    assert 0 <= score <= 1


@pytest.mark.parametrize("name", [*OTHERS, "python"])
def test_any_other_metric_is_refused_in_one_line_with_what_to_set(name: str) -> None:
    with pytest.raises(MetricError, match=rf"metric `{name}` cannot score held-out questions on a server: ") as error:
        check_served(config_of(name))
    assert "Set `evaluation.metric` to one of exact_match, json_fields" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(set(OTHERS) - {"similarity", "tool_calls"}))
def test_what_is_refused_has_other_scores_or_is_no_mean(name: str) -> None:
    (metric,) = make_metrics([config_of(name)], folder=Path(), answer_format=FORMAT, refusal="no")
    assert metric.bounds != (0.0, 1.0) or metric.kind == "corpus"


def test_a_refusal_metric_needs_the_domains_refusal() -> None:
    with pytest.raises(MetricError, match=re.escape("set `answer.refusal`")):
        served_metric(config_of("refusal"), FORMAT, None)


@pytest.mark.parametrize(
    ("answer", "in_scope", "score"), [("no", False, 1.0), ("no", True, 0.0), ("yes", True, 1.0), ("yes", False, 0.0)]
)
def test_a_refusal_is_right_out_of_scope_alone(answer: str, in_scope: bool, score: float) -> None:
    assert score_one(served_metric(config_of("refusal"), FORMAT, "no"), "?", "no", answer, in_scope=in_scope) == score


def test_an_expected_answer_that_a_metric_cannot_read_is_known_beforehand() -> None:
    metric = served_metric(config_of("numeric"), FORMAT, None)
    assert scorable(metric, [("17 g", True), ("none", True)]) == [True, False]
    assert isinstance(score_one(metric, "?", "none", "17", in_scope=True), LeftOut)


@pytest.mark.parametrize("name", ["json_fields", "span_f1", "exact_match", "valid_format"])
@pytest.mark.parametrize("depth", [400, 900, 5000])
def test_an_answer_of_many_brackets_is_wrong_and_harms_nobody(name: str, depth: int) -> None:
    metric = served_metric(config_of(name), FORMAT, None)
    assert score_one(metric, "?", '{"a": 1}', "[" * depth + "]" * depth, in_scope=True) == 0.0
