"""Reports of runs, for programs and for people."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.errors import RunFileError
from loadtest.load.files import read_run, write_run
from loadtest.load.records import RunResult
from loadtest.report.figures import Report, make_report
from loadtest.report.html import render_html
from loadtest.report.report import ReportPaths, summary_markdown, summary_table, write_reports
from loadtest.report.slo import parse_slo
from tests.runs import random_run, request, run_of

RUN = random_run(num_requests=60)
SLO = parse_slo("ttft=500ms,itl=100ms")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    return write_reports(RUN, SLO, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page on many models, the most asked of which is called like a script, by a late generator."""
    many = [request(model=f"adapter-{n}", at_s=n / 10) for n in range(49)]
    run = run_of(*many, *2 * [request(model="<script>alert(1)</script>")], is_bottleneck=True)
    return page_of(run, tmp_path_factory.mktemp("odd"))


def page_of(result: RunResult, folder: Path) -> str:
    return write_reports(result, SLO, folder).html_file.read_text()


@pytest.mark.slow
def test_the_json_report_reads_back_as_the_documented_model(paths: ReportPaths) -> None:
    report = Report.model_validate_json(paths.json_file.read_bytes())
    assert report == make_report(RUN, SLO)
    assert sum(adapter.num_requests for adapter in report.adapters) == report.overall.num_requests == 60
    assert report.slo is not None


def test_a_report_without_an_slo_has_no_verdict() -> None:
    assert json.loads(make_report(RUN, None).model_dump_json())["slo"] is None


def test_the_page_is_one_file_with_four_plots_and_no_reference_to_elsewhere(paths: ReportPaths) -> None:
    page = paths.html_file.read_text()
    assert page.count("<svg") == 4
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == []


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(paths: ReportPaths) -> None:
    assert render_html(make_report(RUN, SLO), RUN) == paths.html_file.read_text()


@pytest.mark.slow
def test_a_run_without_an_answer_has_a_page(tmp_path: Path) -> None:
    assert "no request has this value" in page_of(run_of(request(error="timeout")), tmp_path)


@pytest.mark.slow
def test_a_run_without_requests_has_a_page(tmp_path: Path) -> None:
    assert "no request has this value" in page_of(run_of(duration_s=0.0), tmp_path)


@pytest.mark.slow
def test_the_plots_of_many_models_show_the_most_asked(odd_page: str) -> None:
    assert odd_page.count("the 40 most asked of 50 models") == 2


@pytest.mark.slow
def test_the_page_warns_of_a_late_generator_and_escapes_what_a_server_named_its_models(odd_page: str) -> None:
    assert "it was the bottleneck" in odd_page
    assert "<script>" not in odd_page
    assert "&lt;script&gt;" in odd_page


def test_the_markdown_has_a_row_for_all_traffic_and_one_a_model() -> None:
    run = run_of(request(model="a"), request(model="b", ttft_s=0.7), request(model="b", error="timeout"))
    lines = summary_markdown(make_report(run, SLO)).splitlines()
    assert "| all | 3 | 0 | 1 | 0.20 | 2.2 | 400.0 | 694.0 | 20.0 | 20.0 | 600.0 | 894.0 |" in lines
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == ["model", "all", "b", "a"]
    assert "- MISSED: ttft p99 694ms, limit 500ms" in lines


def test_the_terminal_table_fits_eighty_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(make_report(random_run(), None)))
    assert "…" not in out.getvalue()
    assert "adapter-002" in out.getvalue()


def test_a_run_is_read_back_from_its_folder_or_its_file(tmp_path: Path) -> None:
    result = random_run(num_requests=5)
    file = write_run(result, tmp_path)
    assert read_run(tmp_path) == read_run(file) == result


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run\.json'?: No such file or directory\. Give the folder of a"):
        read_run(tmp_path)


def test_a_file_that_is_no_run_is_refused_with_the_key_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": 3}')
    with pytest.raises(RunFileError, match="is not a valid run: name: Input should be a valid string"):
        read_run(tmp_path)
