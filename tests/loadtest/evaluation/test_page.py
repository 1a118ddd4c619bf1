"""The page of a report: the matrix of classes, and how many items one model alone gets wrong."""

import re
from pathlib import Path

import pytest

from config.dataset import DatasetRow, Message, read_dataset
from loadtest.evaluation.asking import Answers, SavedAnswer
from loadtest.evaluation.page import render_page
from loadtest.evaluation.report import make_report
from quality.metrics.classes import Accuracy
from tests.datasets_on_disk import write_dataset

EXPECTED = ("cat", "cat", "cat", "dog", "dog", "dog")


@pytest.fixture
def page(tmp_path: Path) -> str:
    manifest = read_dataset(write_dataset(tmp_path / "medical", num_test=1))
    rows = [
        DatasetRow(messages=(Message(role="user", content="?"), Message(role="assistant", content=text)), input="?",
                   output=text)
        for text in EXPECTED
    ]  # fmt: skip
    answers = [answered("live", EXPECTED, 0.2), answered("x offline", ("cat", "dog", "<i>", "dog", "dog", "cat"), 0.0)]
    report = make_report(manifest, rows, answers, [Accuracy()], few_shot=False, started_at="2026-11-29T00:00:00+00:00")
    return render_page(report)


def answered(name: str, texts: tuple[str, ...], e2e_s: float) -> Answers:
    return Answers(name, name, name, tuple(SavedAnswer(str(n), text, (), 1, 1, e2e_s) for n, text in enumerate(texts)))


def test_the_matrix_counts_expected_by_answered(page: str) -> None:
    matrix = page[page.index("Confusion of x offline") : page.index("alone is wrong")]
    columns = re.findall(r'<th class="num" title="([^"]*)"', matrix)
    rows = [re.findall(r">(\d*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", matrix, re.DOTALL)][1:]
    assert columns == ["cat", "dog", "(no class)"]
    assert rows == [["1", "1", "1", "1"], ["2", "1", "2", ""]]  # the number of the row first


def test_a_heading_counts_what_one_model_alone_gets_wrong(page: str) -> None:
    assert "x offline alone is wrong: 3 of 3" in page
    assert "alone is right" not in page


def test_offline_answers_have_no_time(page: str) -> None:
    assert "200 ms" in page
    assert "<td>offline</td>" in page
    assert " 0 ms" not in page
