"""`lorikeet loadtest compare`, `capacity`, `cliff` and `lorikeet bench` as an operator meets them."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import lorikeet
from loadtest.errors import SloError
from loadtest.load.files import write_run
from loadtest.report.compare import RunComparison, compare
from loadtest.report.compare_tables import comparison_table, parse_share
from tests.runs import random_run, request, run_of

RUN = random_run(num_requests=60, num_models=1, error_share=0)


def run_cli(*words: object) -> Result:
    return CliRunner().invoke(lorikeet.app, [str(word) for word in words])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A run, and one in which every request failed."""
    write_run(RUN, tmp_path / "a")
    write_run(run_of(*(request(n, error="timeout") for n in range(60))), tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def test_a_run_compared_with_itself_passes(folders: tuple[Path, Path]) -> None:
    result = run_cli("loadtest", "compare", folders[0], folders[0] / "run.json", "--fail-if-worse", "5%")
    assert (result.exit_code, "no difference" in result.output) == (0, True)


def test_a_run_that_is_surely_worse_fails_and_says_in_what(folders: tuple[Path, Path], tmp_path: Path) -> None:
    json_file = tmp_path / "comparison.json"
    result = run_cli("loadtest", "compare", *folders, "--fail-if-worse", "5%", "--json", json_file)
    assert result.exit_code == 1
    assert "Significantly worse by more than 5%: requests/s, output tokens/s, errors" in result.output
    assert RunComparison.model_validate_json(json_file.read_bytes()).worse_than(0.05)


def test_without_a_limit_a_comparison_only_tells(folders: tuple[Path, Path]) -> None:
    assert run_cli("loadtest", "compare", *folders).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("loadtest", "compare", "nowhere", "nowhere"), "'nowhere': No such file or directory"),
        (("loadtest", "capacity", "--model", "m", "--slo", "ttft=fast"), "'ttft': got 'fast'"),
        (("loadtest", "capacity", "--model", "m", "--low", "9", "--high", "3"), "got low 9 and high 3"),
        (("loadtest", "capacity", "--model", "m", "--url", "http://127.0.0.1:9/v1"), "No server at"),
        (("loadtest", "cliff", "--max-loras", "4", "--max-cpu-loras", "2"), "max_cpu_loras must be at least"),
        (("loadtest", "cliff", "--adapter", "nobody", "--home", "nowhere"), "There is no 'nobody'"),
        (("bench", "adapters", "--url", "http://127.0.0.1:9/v1"), "Give three --model with --url"),
        (("bench", "nothing"), "is not a benchmark; known: adapters"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(words: tuple[str, ...], message: str) -> None:
    result = run_cli(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 12.5% ", 0.125)])
def test_a_share_is_a_percentage_or_a_number(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


def test_a_share_in_words_is_refused() -> None:
    with pytest.raises(SloError, match="--fail-if-worse: got 'a bit', wanted a share"):
        parse_share("a bit")


def test_the_table_of_a_comparison_fits_eighty_columns() -> None:
    out = io.StringIO()
    other = run_of(*(request(n, error="timeout") for n in range(60)))
    Console(file=out, width=80).print(comparison_table(compare(RUN, other)))
    assert "…" not in out.getvalue()
    assert "errors" in out.getvalue()
