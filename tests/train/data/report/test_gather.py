from pathlib import Path

import pytest

from config.dataset import StepRecord, read_dataset, version_folder
from tests.train.data.report.built import FILE, HOSTILE, build_support
from train.data.report.figures import DataReport, TokenReport
from train.data.report.gather import make_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DataReport:
    return make_report(build_support(tmp_path_factory.mktemp("gather")), TokenReport(note="No base."))


@pytest.mark.parametrize(
    ("group", "line"),
    [("exact duplicates", 6), ("personal data", 2), ("refusals", 3), ("rendered templates", 4)],
)
def test_each_finding_has_its_file_and_line(report, group, line):
    found = {each.name: each.findings for each in report.groups}
    assert [each.where for each in found[group]] == [f"{FILE} line {line}"]


def test_the_counts_are_those_of_the_rows(report):
    assert report.num_rows == {"train": 24, "validation": 2, "test": 3}
    assert (report.num_refusals, report.num_answers) == (1, 29)
    assert {step.name: step.num_dropped for step in report.steps}["exact duplicates"] == 1
    assert report.languages[0].counts["en"] >= 26


def test_the_domains_system_prompt_is_not_a_question(report):
    (questions, _) = report.lengths
    assert questions.largest == len(HOSTILE)


def test_why_nothing_is_said_in_tokens_is_a_note(report):
    assert report.tokens is None
    assert "No base." in report.notes


def test_a_step_of_the_build_is_not_checked_again(tmp_path: Path) -> None:
    folder = build_support(tmp_path)
    manifest = read_dataset(folder)
    (row,) = [each for each in make_report(folder, TokenReport()).groups if each.name == "personal data"]
    assert len(row.findings) == 1
    redacted = StepRecord(name="personal data", num_before=30, num_after=30, num_changed=1)
    path = version_folder(folder) / "manifest.json"
    path.write_text(manifest.model_copy(update={"steps": (redacted,)}).model_dump_json())
    assert "personal data" not in {each.name for each in make_report(folder, TokenReport()).groups}
