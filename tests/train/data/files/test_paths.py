"""`data.path`: files, folders, globs, several of them."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.train.data.files_on_disk import pairs, read, rows, write
from train.data.files.paths import find_files
from train.errors import DataError

ROW = rows({"input": "a", "output": "b"})


def names(*paths: Path | str) -> list[str]:
    return [file.name for file in find_files(list(map(str, paths)))[0]]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "in/c.jsonl.gz", ".hidden.jsonl", ".git/d.jsonl"):
        write(tmp_path, name, ROW)
    assert names(tmp_path) == ["a.csv", "b.jsonl", "in/c.jsonl.gz"]


def test_a_readme_beside_data_is_not_data(tmp_path: Path) -> None:
    write(tmp_path, "README.md", b"# About")
    write(tmp_path, "dataset_info.json", b"{}")
    write(tmp_path, "a.jsonl", ROW)
    found = read(tmp_path)
    assert pairs(found) == [("a", "b")]
    assert found.notes[0] == f"Not read in {tmp_path.name}: README.md, dataset_info.json."


def test_a_folder_of_texts_is_read_as_documents(tmp_path: Path) -> None:
    write(tmp_path, "one.md", b"One")
    write(tmp_path, "two.txt", b"Two")
    assert [example.text for example in read(tmp_path).examples] == ["One", "Two"]


def test_a_glob_reads_what_it_matches(tmp_path: Path) -> None:
    for name in ("x/1.jsonl", "y/2.jsonl", "y/3.csv"):
        write(tmp_path, name, ROW)
    assert names(f"{tmp_path}/**/*.jsonl") == ["x/1.jsonl", "y/2.jsonl"]


def test_several_paths_are_read_in_their_order(tmp_path: Path) -> None:
    second, first = write(tmp_path, "a.jsonl", ROW), write(tmp_path, "b.jsonl", ROW)
    assert names(first, second, first) == ["b.jsonl", "a.jsonl"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{folder}/train.jsonl", ROW) for folder in ("x", "y")]
    assert names(*paths) == ["x/train.jsonl", "y/train.jsonl"]


def test_files_of_one_name_in_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{folder}/data/train.jsonl", ROW) for folder in ("x", "y")]
    assert names(*paths) == ["x/data/train.jsonl", "y/data/train.jsonl"]


@pytest.mark.parametrize(
    "name", ["data[v2].jsonl", "[/final].jsonl", "50% off?.csv", "a::b.jsonl", "Ünïcode 数据.jsonl", "a*b.jsonl"]
)
def test_a_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name.replace("/", "_"), ROW)
    assert names(path) == [path.name]


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(ROW)
    assert names(tmp_path) == ["caf\\udce9.jsonl"]


def test_each_file_has_its_digest_and_rows(tmp_path: Path) -> None:
    found = read(write(tmp_path, "a.jsonl", ROW * 2)).files[0]
    assert (found.size_bytes, found.num_rows, found.layout) == (2 * len(ROW), 2, "input_output")
    assert found.sha256 == hashlib.sha256(ROW * 2).hexdigest()


def test_files_of_a_folder_may_have_different_layouts(tmp_path: Path) -> None:
    write(tmp_path, "1.jsonl", ROW)
    write(tmp_path, "2.csv", b"question,answer\nc,d\n")
    found = read(tmp_path)
    assert pairs(found) == [("a", "b"), ("c", "d")]
    assert [file.layout for file in found.files] == ["input_output", "question_answer"]


def test_an_error_shows_no_credentials() -> None:
    with pytest.raises(DataError) as caught:
        find_files(["memory://key:secret@nowhere/x.jsonl"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.jsonl", r"Cannot read '.*missing\.jsonl': .*Check `data\.path`"),
        ("owner/name", r"No such file or directory\. Check `data\.path`\. .*`hf://datasets/owner/name`\."),
        ("*.jsonl", r"'.*\*\.jsonl' has no files; wanted files that end in \.jsonl"),
        ("empty", r"'.*empty' has no files"),
        ("books", r"'.*books' holds a\.xlsx; .*Excel workbooks must be saved as CSV"),
        ("nul\0.jsonl", r"Cannot read "),
        ("nosuch://x/y.jsonl", r"Cannot read 'nosuch://x/y\.jsonl': Protocol not known"),
    ],
)
def test_a_path_without_data_says_so(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, "books/a.xlsx", b"x")
    with pytest.raises(DataError, match=message):
        find_files([path if "://" in path else str(tmp_path / path)])


def test_a_path_may_go_up(tmp_path: Path) -> None:
    write(tmp_path, "x/a.jsonl", ROW)
    (tmp_path / "y").mkdir()
    assert names(f"{tmp_path}/y/../x") == ["a.jsonl"]
