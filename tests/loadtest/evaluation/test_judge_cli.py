"""Judges and people on the command line, against a server that writes the same words whatever it is asked."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.bench.synthetic import Delays, SyntheticServer, synthetic_server
from loadtest.evaluation.page import judge_text
from loadtest.evaluation.report import JudgeNote
from lorikeet import app
from tests.datasets_on_disk import write_dataset


@pytest.fixture(scope="module")
def server() -> Iterator[SyntheticServer]:
    with synthetic_server(Delays(ttft_s=0.001, itl_s=0.001)) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Four questions; a judge decides, and exact match stands beside it."""
    manifest = write_dataset(tmp_path / "datasets" / "medical", num_test=4) / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["evaluation"]["metrics"] = [{"name": "judge", "model": "writer"}, {"name": "exact_match"}]
    manifest.write_text(json.dumps(fields))
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", *words], env={"COLUMNS": "200"})
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(result.output.split())


def export(server: SyntheticServer, home: Path, *words: str) -> tuple[int, str]:
    sheet = str(home / "sheet.csv")
    where = ("--url", f"{server.url}/v1", "--home", str(home), "--out", sheet)
    return run("export-sheet", "medical", "--model", "old", "--model", "new", *where, *words)


def fill(path: Path, *scores: str) -> None:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row, score in zip(rows, scores, strict=False):
        row["score"] = score
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.slow
def test_a_judge_of_nonsense_leaves_the_other_metrics(server: SyntheticServer, home: Path) -> None:
    code, shown = run("run", "medical", "--url", f"{server.url}/v1", "--home", str(home))
    assert code == 0, shown
    assert "n 0, 4 left out" in shown
    assert "0.000 (0.000 to 0.490), n 4" in shown
    assert "medical, judge: left out 1: The judge's reply is not JSON" in shown
    assert "judge: judged by writer; no human labels" in shown
    assert "no human labels" in run("show", "medical", "--home", str(home))[1]


@pytest.mark.slow
def test_a_judge_on_the_command_line_has_the_domains_settings(server: SyntheticServer, home: Path) -> None:
    shown = run("run", "medical", "--metric", "judge", "--url", f"{server.url}/v1", "--home", str(home))[1]
    assert "judged by writer" in shown


def test_a_judge_elsewhere_needs_its_key_before_anything_is_asked(server: SyntheticServer, home: Path) -> None:
    manifest = home / "datasets" / "medical" / "manifest.json"
    fields = json.loads(manifest.read_text())
    judge = {"name": "judge", "url": f"{server.url}/v1", "model": "elsewhere", "api_key_env": "JUDGE_KEY_OF_TEST"}
    fields["evaluation"]["metrics"] = [judge]
    manifest.write_text(json.dumps(fields))
    words = ["eval", "run", "medical", "--url", f"{server.url}/v1", "--home", str(home)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1
    assert "'JUDGE_KEY_OF_TEST'" in refused.output
    assert not (home / "evaluations").exists()
    asked = CliRunner().invoke(app, words, env={"JUDGE_KEY_OF_TEST": "secret", "COLUMNS": "200"})
    assert asked.exit_code == 0, asked.output
    assert "judged by elsewhere" in asked.output


def test_people_grade_a_sheet_without_names(server: SyntheticServer, home: Path) -> None:
    code, shown = export(server, home, "--n", "3")
    assert code == 0, shown
    sheet = home / "sheet.csv"
    assert "old" not in sheet.read_text(encoding="utf-8-sig")
    fill(sheet, "5", "2", "")
    code, shown = run("import-sheet", str(sheet), "--grader", "ann", "--home", str(home))
    assert code == 0, shown
    assert "medical: 2 of 3 answers graded by 1" in shown
    assert shown.count("0.625") == 2  # both models answered the same
    assert "One grader: agreement is unknown" in shown
    shown = run("import-sheet", str(sheet), "--grader", "ann", "--home", str(home))[1]
    assert "2 earlier grades of the same graders are replaced" in shown
    fill(sheet, "5", "1", "4")
    shown = run("import-sheet", str(sheet), "--grader", "bo", "--home", str(home))[1]
    assert "kappa of ann, bo: 0.923" in shown  # 1 - (1/32) / (13/32)
    shown = run("run", "medical", "--url", f"{server.url}/v1", "--home", str(home))[1]
    assert "of 3 human labels none has its judgement" in shown


def test_a_sheet_is_never_written_over(server: SyntheticServer, home: Path) -> None:
    (home / "sheet.csv").write_text("mine")
    code, shown = export(server, home)
    assert (code, (home / "sheet.csv").read_text()) == (1, "mine")
    assert "Give another `--out`" in shown


@pytest.mark.parametrize(
    "words",
    [("export-sheet", "legal", "--model", "x", "--out", "legal.csv"), ("import-sheet", "x.csv"), ("grade", "x.csv")],
)
def test_what_is_missing_is_one_line(home: Path, words: tuple[str, ...]) -> None:
    code, shown = run(*words, "--home", str(home))
    assert code == 1
    assert shown.startswith("error: ")


def test_a_folder_that_does_not_exist_is_named_before_anything_is_asked(home: Path) -> None:
    where = ("--out", str(home / "no" / "sheet.csv"), "--home", str(home), "--url", "http://127.0.0.1:9")
    code, shown = run("export-sheet", "medical", "--model", "x", *where)
    assert code == 1
    assert "of `--out` does not exist" in shown


@pytest.mark.slow
def test_a_wrong_score_is_named_and_nothing_is_taken(server: SyntheticServer, home: Path) -> None:
    assert export(server, home)[0] == 0
    fill(home / "sheet.csv", "5", "excellent")
    code, shown = run("import-sheet", str(home / "sheet.csv"), "--home", str(home))
    assert code == 1
    assert "line 4 (row 3 of the table): `score` must be 1 to 5, right or wrong; got 'excellent'" in shown
    assert not list(home.rglob("*.grades.json"))


@pytest.mark.parametrize(
    ("note", "shown"),
    [
        (JudgeNote(judge="", num_labels=0), "not judged; no human labels"),
        (
            JudgeNote(judge="x", num_labels=9),
            "kappa does not exist: people and judge gave all 9 answers the same grade",
        ),
        (
            JudgeNote(judge="x", num_labels=9, weights="quadratic", kappa=0.5, ci_low=0.1, ci_high=0.75),
            "judged by x; quadratically weighted kappa with people 0.500 (0.100 to 0.750), n 9.",
        ),
    ],
)
def test_a_judge_is_shown_with_its_agreement(note: JudgeNote, shown: str) -> None:
    assert shown in judge_text(note)
