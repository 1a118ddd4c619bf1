"""The demo's report, from figures to a page."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from adapters.scores import score_of
from demo.asking import DomainScores
from demo.figures import (
    AnswerFigures,
    DemoReport,
    DomainFigures,
    MeanwhileFigures,
    StepFigures,
    SwapFigures,
    domain_figures,
)
from demo.report import print_report, write_report
from loadtest.evaluate import LiveAnswer, LiveScore


def live_score(num_right: int, n: int, served_by: str = "medical@3") -> LiveScore:
    return LiveScore(
        model="medical",
        served_by=served_by,
        accuracy=score_of(num_right, n),
        valid_format=score_of(n - 2, n),
        ttft_p50_s=0.25,
        ttft_p99_s=0.9,
        tokens_per_s=80.0,
        seconds=40.0,
        concurrency=16,
        answers=tuple(
            LiveAnswer("?", "yes", "yes" if row < num_right else "no", served_by, 0.1, 0.2, 5) for row in range(n)
        ),
    )


def figures(parity_error_nats: float | None = 0.02) -> DomainFigures:
    scores = DomainScores(adapter=live_score(150, 200), base=live_score(1, 50), few_shot=live_score(20, 100))
    return domain_figures("medical", scores, parity_error_nats, 200.0)


def report() -> DemoReport:
    answer = AnswerFigures(
        model="medical",
        served_by="medical@3",
        is_streamed=True,
        input="<script>alert(1)</script>",
        expected="{}",
        answer="{}",
        seconds=0.5,
    )
    swap = SwapFigures(
        adapter="medical",
        served_by="medical@3",
        is_trained_here=True,
        published_s=250,
        answer_s=251,
        input="<script>alert(2)</script>",
        answer="{}",
    )
    return DemoReport(
        seconds=600,
        first_adapter_answer_s=251,
        date="2026-11-28 23:00 UTC",
        machine="two cores",
        base="smollm2-135m-nf4",
        concurrency=16,
        engine_ready_s=140,
        steps=(
            StepFigures(name="prepare the base", seconds=30, start_s=2),
            StepFigures(name="start the server", seconds=140, start_s=32, kind="server"),
            StepFigures(name="train medical", seconds=200, start_s=50, kind="train"),
            StepFigures(name="evaluate medical", seconds=90, start_s=252, kind="evaluate"),
        ),
        domains=(figures(),),
        answers=(answer,),
        swaps=(swap,),
        meanwhile=(MeanwhileFigures(model="smollm2-135m", at_s=180, seconds=0.9, is_ok=True),),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The JSON file and the page."""
    return write_report(report(), tmp_path_factory.mktemp("demo"))


def test_the_json_report_has_the_agreed_keys(written: tuple[Path, Path]) -> None:
    content = json.loads(written[0].read_text())
    assert (content["seconds"], content["first_adapter_answer_s"]) == (600, 251)
    assert content["steps"][0] == {"name": "prepare the base", "seconds": 30, "start_s": 2, "kind": "prepare"}
    (domain,) = content["domains"]
    expected = {
        "domain": "medical",
        "n": 200,
        "base": 0.02,
        "base_n": 50,
        "few_shot": 0.2,
        "few_shot_n": 100,
        "adapter": 0.75,
        "valid_format": 0.99,
        "parity_ok": True,
    }
    assert {key: domain[key] for key in expected} == expected
    assert domain["ttft_p50_s"] == 0.25
    assert domain["adapter_interval"][0] < 0.75 < domain["adapter_interval"][1]


def test_a_gain_is_of_the_questions_that_both_were_asked() -> None:
    assert figures().gain == pytest.approx(0.98)  # 50 of 50 and 1 of 50
    assert figures().gain_interval[0] < 0.98 < figures().gain_interval[1]


def test_parity_is_not_ok_where_the_server_measured_none() -> None:
    assert not figures(parity_error_nats=None).parity_ok


def test_the_page_is_one_file_with_plots_and_what_came_from_a_model_is_escaped(
    written: tuple[Path, Path],
) -> None:
    page = written[1].read_text()
    assert page.count("<svg") == 3
    assert "<script>" not in page
    assert 'src="http' not in page
    assert "75.0% (69–80)" in page
    assert "4 min 11 s" in page


def test_the_time_line_names_every_step_and_the_first_answer(written: tuple[Path, Path]) -> None:
    page = written[1].read_text()
    plot = page[page.index("<svg") : page.index("</svg>")]
    for shown in ("prepare the base", "start the server", "train medical", "medical@3 answers", "asked while training"):
        assert shown in plot


def test_the_terminal_table_names_every_domain_with_its_intervals() -> None:
    out = io.StringIO()
    print_report(report(), Console(file=out, width=200))
    for shown in ("medical", "75.0% (69–80)", "250 ms", "of 50", "of 100", "of 200"):
        assert shown in out.getvalue()
    assert "1 questions, one at a time: 0 failed" in out.getvalue()
