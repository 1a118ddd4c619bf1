"""`lorikeet eval compare`: reports from saved answers, without a server."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from config.dataset import read_dataset, read_split
from loadtest.evaluation.asking import AnsweredBy, AnswersFile, SavedAnswer, request_id, requests_of
from loadtest.evaluation.report import last_report
from lorikeet import app
from tests.datasets_on_disk import ANSWER, write_dataset

FILLED = ("system", "temperature", "max_tokens", "stop")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Four questions; the base has no answer right, version 2 one, version 3 two."""
    write_dataset(tmp_path / "datasets" / "medical", num_test=4)
    save(tmp_path, "tiny", num_right=0, filled=())
    save(tmp_path, "medical@2", num_right=1)
    save(tmp_path, "medical@10", num_right=2)
    return tmp_path


def save(
    home: Path, name: str, *, num_right: int, filled: tuple[str, ...] = FILLED, num_asked: int = 4, age_s: int = 0,
    digest: str = "a", few_shot: bool = False,
) -> None:  # fmt: skip
    """Answers as an evaluation leaves them."""
    folder = home / "datasets" / "medical"
    manifest, rows = read_dataset(folder), read_split(folder, "test")
    place = home / "evaluations" / "medical" / manifest.dataset_sha256[:12]
    file = AnswersFile(place, AnsweredBy(name, f"{name} {digest}", filled))
    for number, request in enumerate(requests_of(manifest, rows, name, filled, few_shot=few_shot)[:num_asked]):
        file.add(SavedAnswer(request_id(request), ANSWER if number < num_right else "no", (), 9, 3, 0.1))
    newest = max(place.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    os.utime(newest, (1_700_000_000 - age_s,) * 2)


def compared(home: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", "compare", *words, "--home", str(home)], env={"COLUMNS": "200"})
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def figures(home: Path) -> dict[str, float]:
    """The first metric of each model in the last report, in its order."""
    report = last_report(home / "evaluations" / "medical" / "reports")
    assert report is not None
    return {model.served_by: model.metrics[0].whole.value for model in report.models}


def report_of(home: Path, name: str, *models: str) -> str:
    """Path of a report on these models."""
    assert compared(home, "medical", *(word for model in models for word in ("--model", model)))[0] == 0
    folder = home / "evaluations" / "medical" / "reports"
    (path,) = folder.glob("2*.json")
    return str(path.rename(folder / name))


def test_all_saved_models_are_compared_with_the_base(home: Path) -> None:
    code, shown = compared(home, "medical")
    assert code == 0, shown
    assert list(figures(home).items()) == [("tiny", 0.0), ("medical@2", 0.25), ("medical@10", 0.5)]
    assert "+0.500" in shown


def test_named_models_are_compared_in_their_order(home: Path) -> None:
    assert compared(home, "medical", "--model", "medical@10", "--model", "base")[0] == 0
    assert list(figures(home)) == ["medical@10", "tiny"]


def test_answers_with_and_without_a_server_are_two_models(home: Path) -> None:
    save(home, "medical@2 offline", num_right=4)
    save(home, "tiny offline", num_right=1, filled=())
    words = ("--model", "base offline", "--model", "medical@2", "--model", "medical@2 offline")
    code, shown = compared(home, "medical", *words)
    assert code == 0, shown
    assert figures(home) == {"tiny offline": 0.25, "medical@2": 0.25, "medical@2 offline": 1.0}


def test_missing_answers_are_named_with_the_command(home: Path) -> None:
    save(home, "medical@3 offline", num_right=1, num_asked=3)
    code, shown = compared(home, "medical", "--model", "medical@3 offline")
    assert code == 1
    assert "'medical@3 offline' has 3 of 4 answers saved" in shown
    assert "`lorikeet eval run medical@3 --domain medical --offline`" in shown
    code, shown = compared(home, "medical", "--model", "medical@7", "--few-shot", "--limit", "2")
    assert "'medical@7' has no answers saved" in shown
    assert "`lorikeet eval run medical@7 --domain medical --few-shot --limit 2`" in shown


@pytest.mark.slow
def test_models_without_all_answers_are_left_out_of_all(home: Path) -> None:
    save(home, "medical@3", num_right=1, num_asked=3)
    assert compared(home, "medical")[0] == 0
    assert "medical@3" not in figures(home)
    assert compared(home, "medical", "--limit", "3")[0] == 0
    assert figures(home)["medical@3"] == pytest.approx(1 / 3)


def test_the_newest_answers_of_a_base_count(home: Path) -> None:
    save(home, "tiny", num_right=3, filled=(), digest="older", age_s=99)
    assert compared(home, "medical", "--model", "base")[0] == 0
    assert figures(home) == {"tiny": 0.0}


def test_a_file_of_before_that_names_nobody_is_passed_over(home: Path) -> None:
    (old,) = (home / "evaluations" / "medical").glob("*/medical@2-*.jsonl")
    old.write_text("".join(old.read_text().splitlines(keepends=True)[1:]))
    assert "'medical@2' has no answers" in compared(home, "medical", "--model", "medical@2")[1]
    save(home, "medical@2", num_right=1, num_asked=1)  # what the next evaluation asks
    assert compared(home, "medical", "--model", "medical@2")[0] == 0


def test_several_bases_must_be_named(home: Path) -> None:
    save(home, "gpt", num_right=3, filled=())
    code, shown = compared(home, "medical", "--model", "base")
    assert code == 1
    assert "Several bases have answers: gpt, tiny" in shown
    assert compared(home, "medical", "--model", "gpt")[0] == 0


def test_few_shot_answers_are_apart(home: Path) -> None:
    save(home, "tiny", num_right=4, filled=(), few_shot=True)
    assert compared(home, "medical", "--few-shot")[0] == 0
    assert figures(home) == {"tiny": 1.0}


def test_the_models_of_two_reports_are_compared(home: Path) -> None:
    first, second = report_of(home, "a.json", "base", "medical@2"), report_of(home, "b.json", "base", "medical@10")
    code, shown = compared(home, first, second)
    assert code == 0, shown
    Path(first).unlink()
    Path(second).unlink()
    assert figures(home) == {"tiny": 0.0, "medical@2": 0.25, "medical@10": 0.5}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"domain": "legal"}, "Reports of the same questions are wanted; got legal"),
        ({"few_shot": True}, "got medical, few-shot"),
        ({"dataset": "0123456789ab"}, "Data set '0123456789ab' of 'medical'"),
        ({"models": 3}, "must be a report of `lorikeet eval run`"),
    ],
)
def test_reports_that_cannot_be_compared_are_one_line(home: Path, changes: dict[str, object], named: str) -> None:
    first = report_of(home, "a.json", "base")
    other = Path(first).with_name("b.json")
    other.write_text(json.dumps(json.loads(Path(first).read_text()) | changes))
    code, shown = compared(home, str(other), first)
    assert code == 1
    assert named in shown


def test_options_of_a_domain_are_refused_for_reports(home: Path) -> None:
    assert "belong to a domain" in compared(home, report_of(home, "a.json", "base"), "--limit", "2")[1]


def test_what_is_no_report_is_one_line(home: Path) -> None:
    assert "Give a domain, or reports" in compared(home, "medical", "legal")[1]
    assert "'legal' is missing" in compared(home, "legal")[1]
    code, shown = compared(home, "medical", "--few-shot")
    assert code == 1
    assert "No model has saved answers to all 4 questions" in shown
