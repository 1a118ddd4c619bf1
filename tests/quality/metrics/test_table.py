from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from quality.errors import MetricError
from quality.metrics.settings import DEFAULT_METRICS, MetricConfig, PlainName, local_metrics
from quality.metrics.table import make_metrics
from quality.scorers import AnswerFormat

SETTINGS: TypeAdapter[MetricConfig] = TypeAdapter(MetricConfig)


def made(value: object, refusal: str | None = "No.", folder: Path = Path()) -> str:
    settings = [SETTINGS.validate_python(value)]
    return make_metrics(settings, folder=folder, answer_format=AnswerFormat(None), refusal=refusal)[0].name


@pytest.mark.parametrize("name", get_args(PlainName))
def test_each_name_has_its_metric(name: str) -> None:
    assert made(name) == name


def test_metrics_with_settings(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def polite(answer, expected, question):\n    return 1\n")
    assert made({"name": "regex", "pattern": "a+"}) == "regex"
    assert made({"name": "numeric", "tolerance": 0.5}) == "numeric"
    assert made("python: score.py:polite", folder=tmp_path) == "polite"
    assert made({"python": "score.py:polite"}, folder=tmp_path) == "polite"


def test_a_judge_takes_its_default_from_the_server() -> None:
    assert made("judge") == "judge"
    assert made("judge_pairwise") == "judge_pairwise"
    assert made({"name": "judge", "url": "http://judge/v1", "model": "x", "api_key_env": "KEY", "scale": "1-10"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://judge/v1"}, "`model` must name the judge"),
        ({"api_key_env": "KEY"}, "`api_key_env` requires `url`"),
        ({"url": "judge", "model": "x"}, "url"),
        ({"scale": "5-1"}, "a lower and a higher whole number"),
        ({"scale": "good"}, "scale"),
        ({"name": "judge_pairwise", "scale": "1-5"}, "scale"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SETTINGS.validate_python({"name": "judge"} | settings)


def test_judges_are_left_out_where_there_is_no_endpoint() -> None:
    metrics = (SETTINGS.validate_python("judge"), SETTINGS.validate_python("length"))
    assert [metric.name for metric in local_metrics(metrics)] == ["length"]
    assert local_metrics(metrics[:1]) == local_metrics(()) == DEFAULT_METRICS


@pytest.mark.parametrize("value", ["perfection", {"name": "regex"}, {"name": "exact_match", "tolerance": 1}, 3])
def test_an_unknown_metric_or_key_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        SETTINGS.validate_python(value)


def test_refusal_needs_the_domains_refusal() -> None:
    with pytest.raises(MetricError, match=r"answer\.refusal"):
        made("refusal", refusal=None)
