from pathlib import Path

import pytest

from config.dataset import DatasetRow, Origin
from tests.train.data.report.built import FILE, build_support
from train.data.report.one_row import account_of_line, account_of_row, parse_line
from train.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_support(tmp_path_factory.mktemp("row"))


def test_a_dropped_row_names_the_step_and_the_other_row(folder):
    account = account_of_line(folder, Origin(file=FILE, line=6))
    assert (account.row, account.split) == (None, None)
    ((step, found),) = account.findings
    assert (step, str(found.other)) == ("exact duplicates", f"{FILE} line 5")


def test_a_kept_row_has_its_split(folder):
    account = account_of_line(folder, Origin(file=FILE, line=9))
    assert isinstance(account.row, DatasetRow)
    assert account.row.input == "Where is the parcel with number 8 of mine?"
    assert account.split in ("train", "validation", "test")


def test_a_row_by_its_number_is_of_the_training_split(folder):
    assert account_of_row(folder, 1).split == "train"
    with pytest.raises(DataError, match="--row is 25, but the training split has 24 rows"):
        account_of_row(folder, 25)


def test_a_line_without_a_row_is_refused(folder):
    with pytest.raises(DataError, match=r"No row comes from rows.jsonl line 900"):
        account_of_line(folder, Origin(file="rows.jsonl", line=900))


@pytest.mark.parametrize("text", ["[a] b:c.jsonl:12", "[a] b:c.jsonl line 12"])
def test_a_line_is_named_as_in_findings_or_with_a_colon(text):
    assert parse_line(text) == Origin(file="[a] b:c.jsonl", line=12)


@pytest.mark.parametrize("text", ["a.jsonl", "a.jsonl:0", ":3", "a.jsonl:x"])
def test_another_form_of_a_line_is_refused(text):
    with pytest.raises(DataError, match=r"--line is .*as support.jsonl:12"):
        parse_line(text)
