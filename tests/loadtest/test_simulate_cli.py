"""`lorikeet simulate` as a user runs it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.load.files import write_run
from lorikeet import app
from tests.loadtest.simulate.test_calibration import TRUE, run_by


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one-server"
    write_run(run_by(TRUE).model_copy(update={"name": "one-server"}), folder)
    return folder


def simulated(run: Path, output: Path, *options: str) -> tuple[int, str]:
    command = ["simulate", str(run), "--output", str(output), "--num-requests", "500", *options]
    done = CliRunner().invoke(app, command)
    return done.exit_code, done.output


def test_a_fleet_is_recommended_and_written(run: Path, tmp_path: Path) -> None:
    code, text = simulated(run, tmp_path, "--replicas", "2", "--rate", "4", "--slo", "ttft=2s")
    assert code == 0, text
    report = json.loads((tmp_path / "simulation.json").read_text())
    assert report["recommended"]["placement"] >= 1
    assert {row["policy"] for row in report["rows"]} == {"random", "two_choices", "affinity", "placement"}
    assert [own["name"] for own in report["repeated"]] == [
        "tokens/s",
        "TTFT p50, s",
        "TTFT p99, s",
        "cold requests, share",
    ]
    assert "servers are the fewest within" in (tmp_path / "simulation.md").read_text()
    assert (tmp_path / "simulation.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--policy", "magic"], "'magic' is unknown. Choose one of random"),
        (["--against", "nowhere", "--replicas", "2"], "Give the folder of"),
        (["--slo", "ttft=fast"], "ttft"),
    ],
)
def test_bad_options_are_one_line(run: Path, tmp_path: Path, options: list[str], reason: str) -> None:
    code, text = simulated(run, tmp_path, *options)
    assert code == 2
    assert reason in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_real_fleet_is_of_one_size_and_one_policy(run: Path, tmp_path: Path) -> None:
    code, text = simulated(run, tmp_path, "--against", str(run), "--replicas", "2", "--replicas", "4")
    assert (code, "--against needs one --replicas" in text) == (2, True)


def test_a_real_fleet_without_an_answer_is_refused(run: Path, tmp_path: Path) -> None:
    failed = run_by(TRUE)
    records = tuple(record.model_copy(update={"error": "timeout"}) for record in failed.records)
    write_run(failed.model_copy(update={"name": "failed", "records": records}), tmp_path / "failed")
    code, text = simulated(
        run, tmp_path, "--against", str(tmp_path / "failed"), "--replicas", "1", "--policy", "random"
    )
    assert (code, "'failed' has no answered request" in text) == (2, True)
