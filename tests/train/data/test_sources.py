"""What a source gives besides its examples."""

from pathlib import Path

import pytest

from config.data import DataConfig
from config.domain import AnswerConfig
from tests.train.data.files_on_disk import rows, write
from train.data.sources import read_source, source_identity
from train.errors import DataError

ROW = rows({"input": "a", "output": "b", "id": 1})


def config(*paths: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate({"path": tuple(map(str, paths)), **settings})


def test_a_source_of_files_names_them_and_what_was_left_out(tmp_path: Path) -> None:
    source = read_source(config(write(tmp_path, "[v2].jsonl", ROW), licence="MIT"), AnswerConfig())
    assert (source.name, source.licence, len(source.examples)) == ("[v2].jsonl", "MIT", 1)
    assert [(file.name, file.layout, file.num_rows) for file in source.files] == [("[v2].jsonl", "input_output", 1)]
    assert list(source.notes) == ["[v2].jsonl: input/output (detected), 1 row.", "[v2].jsonl: columns not used: id."]


def test_equal_files_elsewhere_have_the_same_identity(tmp_path: Path) -> None:
    one, other = (write(tmp_path / folder, "a.jsonl", ROW) for folder in ("x", "y"))
    assert source_identity(config(one)) == source_identity(config(other))
    assert read_source(config(one), AnswerConfig()).version == read_source(config(other), AnswerConfig()).version


def test_a_changed_or_added_file_changes_the_identity(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", ROW)
    before = source_identity(config(tmp_path))
    write(tmp_path, "b.jsonl", ROW)
    added = source_identity(config(tmp_path))
    path.write_bytes(ROW + ROW)
    assert len({before, added, source_identity(config(tmp_path))}) == 3


def test_own_files_get_everyday_requests_out_of_scope(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", ROW)
    examples = read_source(config(path), AnswerConfig(refusal="no")).examples
    assert {example.answer for example in examples if not example.in_scope} == {"no"}
    assert [example.question for example in examples if example.in_scope] == ["a"]


def test_a_missing_file_has_no_identity(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read '.*a\.jsonl': .*Check `data\.path`"):
        source_identity(config(tmp_path / "a.jsonl"))


def test_held_out_files_are_pinned_to_their_splits(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", rows(*({"input": f"{n}", "output": "a"} for n in range(9))))
    held_out = write(tmp_path, "checked.jsonl", rows(*({"input": f"held {n}", "output": "a"} for n in range(400))))
    config = DataConfig(path=str(path), held_out=(str(held_out),))
    found = read_source(config, AnswerConfig())
    assert [sum(e.split == split for e in found.examples) for split in ("train", "validation", "test")] == [9, 64, 240]
    assert found.notes[-1].startswith("checked.jsonl: 96 of 400 rows are not used")
    assert source_identity(config) != source_identity(DataConfig(path=str(path)))


def test_one_row_cannot_be_held_out_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", rows({"input": "1", "output": "a"}))
    with pytest.raises(DataError, match="1 row to hold out; give at least 2"):
        read_source(DataConfig(path=str(path), held_out=(str(path),)), AnswerConfig())
