"""`lorikeet eval`: what it shows of an endpoint, and what it says where there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.bench.synthetic import UNKNOWN_MODEL, Delays, SyntheticServer, synthetic_server
from lorikeet import app
from tests.datasets_on_disk import write_dataset


@pytest.fixture(scope="module")
def server() -> Iterator[SyntheticServer]:
    with synthetic_server(Delays(ttft_s=0.001, itl_s=0.001)) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "datasets" / "medical", num_test=4)
    return tmp_path


def evaluated(home: Path, url: str, *words: str, domain: str = "medical") -> tuple[int, str]:
    arguments = ["eval", domain, "--url", f"{url}/v1", "--home", str(home), *words]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(("words", "num_asked"), [((), 4), (("--limit", "3"), 3), (("--limit", "9"), 4)])
def test_a_table_shows_the_score_and_how_many_were_asked(
    server: SyntheticServer, home: Path, words: tuple[str, ...], num_asked: int
) -> None:
    code, shown = evaluated(home, server.url, *words)
    assert code == 0, shown
    assert f"│ medical │ {num_asked} │ 0.0% (0.0% to" in shown


def test_a_data_set_that_is_not_built_is_named(server: SyntheticServer, home: Path) -> None:
    code, shown = evaluated(home, server.url, domain="legal")
    assert code == 1
    assert "legal" in shown


def test_a_model_that_the_server_does_not_know_is_one_line(server: SyntheticServer, home: Path) -> None:
    code, shown = evaluated(home, server.url, "--model", UNKNOWN_MODEL)
    assert code == 1
    assert UNKNOWN_MODEL in shown


def test_an_address_that_nobody_answers_is_one_line(home: Path) -> None:
    code, shown = evaluated(home, "http://127.0.0.1:9")
    assert code == 1
    assert "127.0.0.1:9" in shown
