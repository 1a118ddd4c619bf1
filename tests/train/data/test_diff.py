import json
from pathlib import Path

import pytest

from config.dataset import read_dataset
from config.domain import DomainConfig
from config.errors import DatasetError
from config.home import Home
from tests.train.data.report.built import domain_of
from train.data.build import build_dataset
from train.data.diff import dataset_folder, diff_datasets

Rows = dict[str, str]


def built(root: Path, rows: Rows, **changes: object) -> Path:
    """The folder of the version that these questions and answers give."""
    root.mkdir(exist_ok=True)
    path = root / "rows.jsonl"
    path.write_text("".join(json.dumps({"input": q, "output": a}) + "\n" for q, a in rows.items()))
    config: DomainConfig = domain_of(path, **changes)
    home = Home(root / "var")
    return home.datasets / config.name / build_dataset(config, home).version


def rows(num_rows: int) -> Rows:
    return {f"Where is the parcel with number {n} of mine?": f"In town {n}." for n in range(num_rows)}


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return built(tmp_path / "before", rows(20))


def test_equal_data_sets_have_no_differences(before, tmp_path):
    diff = diff_datasets(before, built(tmp_path / "after", rows(20)))
    assert (diff.added, diff.removed, diff.changed, diff.moved, diff.settings) == ((), (), (), (), ())
    assert diff.num_equal == 20


def test_a_new_row_and_a_gone_one_are_named_by_file_and_line(before, tmp_path):
    others = rows(20)
    del others["Where is the parcel with number 3 of mine?"]
    diff = diff_datasets(before, built(tmp_path / "after", others | {"Is it late?": "Yes."}))
    assert [(row.question, row.where) for row in diff.added] == [("Is it late?", "rows.jsonl line 20")]
    assert [row.where for row in diff.removed] == ["rows.jsonl line 4"]
    assert diff.changed == ()


def test_another_answer_is_a_change_with_both(before, tmp_path):
    question = "Where is the parcel with number 3 of mine?"
    diff = diff_datasets(before, built(tmp_path / "after", rows(20) | {question: "In [/b] Rome."}))
    assert [(row.question, row.before, row.after) for row in diff.changed] == [
        (question, "In town 3.", "In [/b] Rome.")
    ]
    assert (diff.added, diff.removed) == ((), ())


def test_a_row_in_another_split_is_moved(before, tmp_path):
    data = {"path": str(tmp_path / "after" / "rows.jsonl"), "num_validation": 2, "num_test": 3, "seed": 99}
    cleaning = {"near_duplicate_jaccard": 1.0, "ngram_overlap": None}
    after = built(tmp_path / "after", rows(20), data=data | {"out_of_scope_share": 0, "cleaning": cleaning})
    diff = diff_datasets(before, after)
    assert diff.moved
    assert {row.before for row in diff.moved} | {row.after for row in diff.moved} <= {"train", "validation", "test"}
    assert len(diff.moved) + diff.num_equal == 20
    assert [(each.name, each.before, each.after) for each in diff.settings] == [("seed", "13", "99")]


def test_settings_that_differ_are_named(before, tmp_path):
    after = built(tmp_path / "after", rows(20), answer={"refusal": "No."})
    names = {each.name: (each.before, each.after) for each in diff_datasets(before, after).settings}
    assert names == {"answer.refusal": ("null", '"No."')}


def test_a_version_is_found_by_its_digest(before):
    datasets, version = before.parents[1], before.name
    assert dataset_folder(datasets, "support") == before.parent
    assert dataset_folder(datasets, f"support@{version}") == before
    assert dataset_folder(datasets, f"support@{version[:6]}") == before
    assert read_dataset(before).version == version


@pytest.mark.parametrize("name", ["support@0000000", "support@x", "../support", "[/b]"])
def test_a_data_set_that_is_not_there_is_one_line(before, name):
    with pytest.raises(DatasetError, match=r"support@1a2b3c4d5e6f|Built are: [0-9a-f]{12}"):
        dataset_folder(before.parents[1], name)
