from pathlib import Path

import pytest

from config.progress import Progress
from tests.train.data.report.built import FILE, HOSTILE, build_support
from train.data.build import StepLog
from train.data.report.figures import DataReport, TokenReport
from train.data.report.gather import HELD_OUT, make_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DataReport:
    return make_report(build_support(tmp_path_factory.mktemp("gather")), TokenReport(note="No base."), StepLog())


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


def test_every_row_is_accounted_for_at_each_step(report):
    steps = report.steps
    assert [each.num_before for each in steps[1:]] == [each.num_after for each in steps[:-1]]
    assert {each.name: each.num_dropped for each in steps}[HELD_OUT] == 5
    assert steps[-1].num_after == report.num_rows["train"]


def test_the_domains_system_prompt_is_not_a_question(report):
    (questions, _) = report.lengths
    assert questions.largest == len(HOSTILE)


def test_why_nothing_is_said_in_tokens_is_a_note(report):
    assert report.tokens is None
    assert "No base." in report.notes


@pytest.mark.parametrize("pii", ["off", "report", "redact"])
def test_personal_data_is_listed_once_whoever_found_it(tmp_path: Path, pii: str) -> None:
    found = make_report(build_support(tmp_path, pii), TokenReport(), StepLog())
    assert [len(group.findings) for group in found.groups if group.name == "personal data"] == [1]
    assert ("personal data" in {step.name for step in found.steps}) == (pii != "off")


class FollowedProgress(Progress):
    """Remembers, for each of the report's checks, how many rows it was to report and how many it did."""

    def __init__(self) -> None:
        super().__init__("report")
        self.counts: dict[str, tuple[int | None, int]] = {}

    def begin(self, total: int, done: int = 0) -> None:
        super().begin(total, done)
        self.counts[self.details["step"]] = (total, done)

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        self.counts[self.details["step"]] = (self.total, self.done)


def test_slow_checks_count_their_rows_for_the_time_left(tmp_path):
    progress = FollowedProgress()
    make_report(build_support(tmp_path), TokenReport(), StepLog(progress))
    assert {name: progress.counts[name] for name in ("languages", "personal data")} == {
        "languages": (58, 58),
        "personal data": (29, 29),
    }
    assert all(total == done for total, done in progress.counts.values())
