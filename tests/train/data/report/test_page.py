import re
from pathlib import Path

import pytest

from tests.train.data.report.built import build_support
from train.data.build import StepLog
from train.data.report.figures import (
    DataReport,
    Histogram,
    LearntRow,
    LearntSpan,
    LengthFigures,
    TokenFigures,
    TokenReport,
)
from train.data.report.gather import make_report
from train.data.report.page import render_page, write_page


def lengths(part: str) -> LengthFigures:
    return LengthFigures(part=part, unit="tokens", smallest=3, median=20, p95=30, p99=40, largest=41, total=500)


IN_TOKENS = TokenReport(
    tokens=TokenFigures(
        base="tiny",
        num_checked=24,
        max_length=32,
        num_cut=2,
        rows=lengths("row"),
        learnt=lengths("learnt"),
        histogram=Histogram(edges=(0, 20, 40), counts=(3, 21)),
    ),
    learnt=(
        LearntRow(
            where="<b>rows.jsonl line 1",
            spans=(
                LearntSpan(text="<|im_start|>user\n", is_learnt=False),
                LearntSpan(text="</pre>Yes", is_learnt=True),
            ),
            num_context_tokens=5,
            num_learnt_tokens=2,
        ),
    ),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DataReport:
    return make_report(build_support(tmp_path_factory.mktemp("page")), IN_TOKENS, StepLog())


@pytest.fixture(scope="module")
def page(report: DataReport) -> str:
    return render_page(report)


def test_texts_and_file_names_stay_text(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [/bold] [red]order[/red]" not in page  # only findings are shown
    assert "<script" not in page
    assert "[bold] &lt;b&gt;rows.jsonl line 2" in page
    assert "Answers &lt;i&gt;questions&lt;/i&gt;." in page
    assert "<b>" not in page


def test_what_is_learnt_is_marked(page):
    assert (
        '<span class="context">&lt;|im_start|&gt;user\n</span><span class="learnt">&lt;/pre&gt;Yes</span></pre>' in page
    )
    assert "5 context tokens, 2" in page


@pytest.mark.parametrize("heading", ["Rows at each step", "Lengths", "Languages", "Findings", "What the model learns"])
def test_the_page_has_each_section(page, heading):
    assert f"<h2>{heading}</h2>" in page


def test_nothing_is_loaded_from_elsewhere(page):
    assert re.findall(r"(?:src|href|url)\s*[=(]|https?:|@import", page) == []
    assert "default-src 'none'" in page


def test_the_page_has_a_dark_scheme(page):
    assert "prefers-color-scheme: dark" in page


def test_more_than_ten_findings_are_counted(report):
    (group, *_) = [each for each in report.groups if each.name == "refusals"]
    many = group.model_copy(update={"findings": group.findings * 12})
    page = render_page(report.model_copy(update={"groups": (many,)}))
    assert page.count("the answer refuses") == 10
    assert "2 more:" in page


@pytest.mark.slow
def test_the_file_is_private_and_replaced(report, tmp_path: Path):
    path = write_page(report, tmp_path / "reports")
    assert write_page(report, tmp_path / "reports") == path
    assert path.name == "support.html"
    assert path.stat().st_mode & 0o077 == 0
    assert [each.name for each in path.parent.iterdir()] == ["support.html"]
