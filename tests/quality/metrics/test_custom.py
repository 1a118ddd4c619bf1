from pathlib import Path

import pytest

from quality.errors import MetricError
from quality.metrics.custom import load_custom
from quality.metrics.item import Item, LeftOut

CODE = """
def polite(answer, expected, question):
    if not answer:
        raise ValueError("no [bold]answer")
    return "please" in answer or float("nan" if answer == "?" else "0")
"""


def item(answer: str) -> Item:
    return Item(id="1", question="?", expected="", answer=answer)


def test_a_function_of_ones_own_scores(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(CODE)
    metric = load_custom("score.py:polite", tmp_path)
    assert metric.name == "polite"
    scores = metric.scores([item("please do"), item("do"), item(""), item("?")])
    assert scores == [1, 0, LeftOut("ValueError: no [bold]answer"), LeftOut("it returned nan")]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("score.py", "must be a file and a function"),
        ("missing.py:f", r"file .*missing\.py not found"),
        ("score.py:rude", "has no function 'rude'"),
        ("broken.py:f", "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_loaded_is_told(reference: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(MetricError, match=message):
        load_custom(reference, tmp_path)
