"""`lorikeet loadtest run`, against the synthetic server."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from config.loadtest import LoadtestConfig, MixConfig
from loadtest.bench.synthetic import UNKNOWN_MODEL, Delays, SyntheticServer, synthetic_server
from loadtest.load.files import read_run
from loadtest.load.live import live_view
from loadtest.load.runner import RunProgress
from lorikeet import app
from tests.runs import request

LOAD = ("--arrival", "constant", "--rate", "50", "--num-requests", "10", "--max-tokens", "4")


@pytest.fixture(scope="module")
def server() -> Iterator[SyntheticServer]:
    with synthetic_server(Delays(ttft_s=0.01, itl_s=0.002)) as running:
        yield running


def loadtest_run(server: SyntheticServer, folder: Path, *words: str) -> Result:
    arguments = ["loadtest", "run", "--url", f"{server.url}/v1", "--output", str(folder), *words]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


SEEDED = (*LOAD, "--model", "a", "--model", "b", "--seed", "5", "--slo", "ttft=60s")


@pytest.fixture(scope="module")
def seeded(server: SyntheticServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a run, and what the command said."""
    folder = tmp_path_factory.mktemp("seeded")
    return folder, loadtest_run(server, folder, *SEEDED)


def test_a_run_leaves_its_records_and_its_reports(seeded: tuple[Path, Result]) -> None:
    folder, result = seeded
    assert result.exit_code == 0, result.output
    run = read_run(folder)
    assert (run.name, len(run.records), sum(record.is_ok for record in run.records)) == (folder.name, 10, 10)
    assert {record.num_completion_tokens for record in run.records} == {4}
    assert run.workload["arrival"] == {"kind": "constant", "rate": 50.0}
    names = {path.name for path in folder.iterdir()}
    assert names == {"run.json", "report.json", "report.html", "report.md"}


@pytest.mark.slow
def test_the_same_seed_sends_the_same_again(
    server: SyntheticServer, seeded: tuple[Path, Result], tmp_path: Path
) -> None:
    loadtest_run(server, tmp_path, *SEEDED)
    one, two = (
        [(record.model, record.intended_s) for record in read_run(folder).records] for folder in (seeded[0], tmp_path)
    )
    assert one == two


def is_met(folder: Path) -> object:
    return json.loads((folder / "report.json").read_text())["slo"]["is_met"]


def test_a_slo_that_was_met_ends_with_zero(seeded: tuple[Path, Result]) -> None:
    folder, result = seeded
    assert result.exit_code == 0
    assert "met" in result.output
    assert is_met(folder) is True


@pytest.mark.slow
def test_a_slo_that_was_missed_ends_with_one(server: SyntheticServer, tmp_path: Path) -> None:
    result = loadtest_run(server, tmp_path, *LOAD, "--model", "a", "--slo", "ttft=1ms")
    assert result.exit_code == 1
    assert "missed" in result.output
    assert is_met(tmp_path) is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--model"),
        (("--model", "a", "--rate", "0"), "greater than 0"),
        (("--model", "a", "--slo", "ttft=500"), "ttft"),
        (("--model", "a", "--dataset", "nowhere"), "is missing or unfinished"),
        (("--model", "a", "--trace", "nowhere.csv"), "No such file"),
        (("--model", "a", "--url", "http://127.0.0.1:9/v1"), "No server at"),
    ],
)
def test_a_run_that_cannot_start_says_why_and_leaves_nothing(
    server: SyntheticServer, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    result = loadtest_run(server, tmp_path / "out", "--home", str(tmp_path), *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_requests_that_fail_are_records_and_a_warning_never_a_crash(server: SyntheticServer, tmp_path: Path) -> None:
    result = loadtest_run(server, tmp_path, *LOAD, "--model", UNKNOWN_MODEL)
    assert result.exit_code == 0, result.output
    assert "No request succeeded" in " ".join(result.output.split())
    assert {(record.status, record.error) for record in read_run(tmp_path).records} == {(404, "client_error")}


def shown(*, is_terminal: bool, models: tuple[str, ...]) -> str:
    """What the live view last said of a run with a request for each model."""
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    progress = RunProgress(num_sent=len(models) + 1, records=[request(model=model, ttft_s=0.2) for model in models])
    with live_view(LoadtestConfig(mix=MixConfig(models=models)), progress, console) as view:
        lines, table = view.line(), view.render()
    with console.capture() as capture:
        console.print(lines, table)
    return capture.get()


def test_the_live_view_shows_what_is_open_and_how_fast_it_is() -> None:
    text = shown(is_terminal=False, models=("a", "b"))
    assert "3 sent, 2 ok, 0 errors, 1 open" in text
    assert "TTFT 200/200 ms" in text


@pytest.mark.slow
def test_the_live_view_has_a_line_for_each_model() -> None:
    lines = shown(is_terminal=True, models=("medical", "legal", "legal")).splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["legal", "2"], ["medical", "1"]]
