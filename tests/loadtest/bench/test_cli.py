"""`lorikeet bench NAME`: which there are, and what each takes."""

import json
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loadtest.bench import cli
from loadtest.bench.cli import BENCHES
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from lorikeet import app

GIVEN: list[BenchOptions] = []
OWN_SERVERS = ("cluster", "coldload", "lora", "manyadapters", "overhead")


def noted(options: BenchOptions) -> tuple[BenchResult, ...]:
    """A benchmark that notes what it is given."""
    GIVEN.append(options)
    return (BenchResult(name="x", value=1.0, unit="s", target="below 2 s", is_pass=True),)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(params=sorted(BENCHES))
def noted_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each benchmark's name, with one behind it that only notes."""
    GIVEN.clear()
    monkeypatch.setitem(BENCHES, request.param, f"{__name__}:noted")
    return str(request.param)


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_every_name_has_a_function(name: str) -> None:
    assert cli._function(name).__name__ == f"bench_{name}"


def test_a_ratio_is_of_nine_rounds_where_it_is_promised_and_else_of_three(noted_name: str) -> None:
    wanted = {"coldload": 9, "lora": 9, "manyadapters": 9, "quality": 9}
    assert invoke(noted_name).exit_code == 0
    assert invoke(noted_name, "--rounds", "5").exit_code == 0
    assert [options.rounds for options in GIVEN] == [wanted.get(noted_name, 3), 5]
    assert GIVEN[0].minutes == 20


@pytest.mark.parametrize("noted_name", ["manyadapters"], indirect=True)
def test_the_long_run_takes_as_long_as_one_says(noted_name: str, tmp_path: Path) -> None:
    assert invoke(noted_name, "--minutes", "0.5", "--json", str(tmp_path / "bench.json")).exit_code == 0
    assert GIVEN[0].minutes == 0.5
    report = json.loads((tmp_path / "bench.json").read_text())
    assert (report["bench"], report["results"][0]["pass"]) == ("manyadapters", True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("lora", "--minutes", "5"), "Only `manyadapters` supports this option"),
        (("generator", "--stock"), "Only `overhead` supports this option"),
        (("nothing",), "is not a benchmark; known: adapters"),
    ],
)
def test_options_of_another_benchmark_are_refused(words: tuple[str, ...], expected: str) -> None:
    refused = invoke(*words)
    assert refused.exit_code == 2
    assert expected in refused.output


@pytest.mark.parametrize("name", OWN_SERVERS)
def test_benchmarks_that_start_their_servers_take_no_url(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    refused = invoke(name, "--url", "http://127.0.0.1:9/v1")
    assert refused.exit_code == 2
    assert "Leave --url out" in refused.output
    assert list(tmp_path.iterdir()) == []
