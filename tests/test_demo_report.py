"""The demo's report, from figures to a page."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from demo.figures import AnswerFigures, DemoReport, DomainFigures, StepFigures, domain_figures
from demo.report import print_report, write_report
from loadtest.evaluate import LiveScore
from quality.intervals import share_of


def live_score(num_right: int, served_by: str = "medical@3") -> LiveScore:
    return LiveScore(
        model="medical",
        served_by=served_by,
        accuracy=share_of(num_right, 200),
        valid_format=share_of(198, 200),
        ttft_p50_s=0.25,
        ttft_p99_s=0.9,
        tokens_per_s=80.0,
        seconds=40.0,
        concurrency=16,
        answers=(),
    )


def figures(parity_error_nats: float | None = 0.02) -> DomainFigures:
    return domain_figures("medical", live_score(2), live_score(40), live_score(150), parity_error_nats, 200.0)


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
    return DemoReport(
        seconds=900,
        date="2026-11-21 23:00 UTC",
        machine="two cores",
        base="smollm2-135m-nf4",
        concurrency=16,
        engine_ready_s=40,
        steps=(StepFigures(name="train medical", seconds=200),),
        domains=(figures(),),
        answers=(answer,),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The JSON file and the page."""
    return write_report(report(), tmp_path_factory.mktemp("demo"))


def test_the_json_report_has_the_agreed_keys(written: tuple[Path, Path]) -> None:
    content = json.loads(written[0].read_text())
    assert content["seconds"] == 900
    (domain,) = content["domains"]
    expected = {
        "domain": "medical",
        "n": 200,
        "base": 0.01,
        "few_shot": 0.2,
        "adapter": 0.75,
        "valid_format": 0.99,
        "parity_ok": True,
    }
    assert {key: domain[key] for key in expected} == expected
    assert domain["ttft_p50_s"] == 0.25
    assert domain["adapter_interval"][0] < 0.75 < domain["adapter_interval"][1]


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


def test_the_terminal_table_names_every_domain_with_its_intervals() -> None:
    out = io.StringIO()
    print_report(report(), Console(file=out, width=140))
    assert "medical" in out.getvalue()
    assert "75.0% (69–80)" in out.getvalue()
    assert "250 ms" in out.getvalue()
