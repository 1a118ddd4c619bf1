"""Held-out questions one by one: answers and scores, and what a metric could not score."""

import logging
from pathlib import Path

import pytest

from quality.metrics.answers import exact_match
from quality.metrics.custom import load_custom
from quality.metrics.item import Item, Metric
from train.evaluate.items import evaluated_items

SCORER = """
def polite(answer, expected, question):
    if not answer:
        raise KeyError("no answer")
    return float("please" in answer)
"""


@pytest.fixture
def metrics(tmp_path: Path) -> list[Metric]:
    (tmp_path / "score.py").write_text(SCORER)
    return [exact_match(), load_custom("score.py:polite", tmp_path)]


def answered(*answers: str) -> list[Item]:
    return [
        Item(f"{n}: a.csv:{n}", f"q{n}", "yes, please", text, slices={"class": "yes"})
        for n, text in enumerate(answers, 1)
    ]


BASE, ADAPTER = answered("no", "no", ""), answered("yes, please", "", "")


def test_an_item_has_both_answers_with_their_scores(metrics: list[Metric]) -> None:
    first = evaluated_items(metrics, BASE, ADAPTER, is_published=True)[0]
    assert first.model_dump(exclude_defaults=True) == {
        "id": "1: a.csv:1",
        "question": "q1",
        "expected": "yes, please",
        "base": "no",
        "adapter": "yes, please",
        "slices": {"class": "yes"},
        "scores": {"exact_match": {"base": 0.0, "adapter": 1.0}, "polite": {"base": 0.0, "adapter": 1.0}},
    }


def test_a_scorer_that_raises_leaves_its_item_out(metrics: list[Metric], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, second, third = evaluated_items(metrics, BASE, ADAPTER, is_published=True)
    assert second.scores["polite"].model_dump() == {"base": 0.0, "adapter": None}
    assert third.left_out == {"polite": "KeyError: 'no answer'"}
    assert "polite: 2 of 3 questions are left out, the first is 2: a.csv:2: KeyError: 'no answer'" in caplog.text


def test_a_domain_that_keeps_its_questions_publishes_scores_alone(metrics: list[Metric]) -> None:
    items = evaluated_items(metrics, BASE, ADAPTER, is_published=False)
    assert {key for item in items for key in item.model_dump(exclude_defaults=True)} == {"id", "scores"}
