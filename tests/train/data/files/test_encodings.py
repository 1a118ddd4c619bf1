"""Characters arrive as the author wrote them, or not at all."""

import json
from contextlib import suppress
from encodings.aliases import aliases
from pathlib import Path

import pytest

from config.data import DataConfig
from tests.train.data.files_on_disk import pairs, read, rows, write
from train.errors import DataError

TEXT = "Café – “tasse”, 5 € 🎩"
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
CONTENT = rows({"input": TEXT, "output": f"a{SEPARATORS}b"}, {"input": "second", "output": "row"}).decode()
EXPECTED = [(TEXT, f"a{SEPARATORS}b"), ("second", "row")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_byte_order_mark_is_recognised(tmp_path: Path, encoding: str, name: str) -> None:
    assert pairs(read(write(tmp_path, name, CONTENT.encode(encoding)))) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "UTF8", "gb18030"])
def test_an_encoding_is_taken_by_name(tmp_path: Path, encoding: str) -> None:
    assert pairs(read(write(tmp_path, "rows.jsonl", CONTENT.encode(encoding)), encoding=encoding)) == EXPECTED


def test_windows_1252_is_read_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", "input;output\r\nCafé – 5 €;“tasse”\r\n".encode("cp1252"))
    assert pairs(read(path, encoding="cp1252")) == [("Café – 5 €", "“tasse”")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_separators_in_a_cell_are_kept(tmp_path: Path, encoding: str) -> None:
    content = f'input,output\n"a{SEPARATORS}b","c\r\nd"\n'
    path = write(tmp_path, "rows.csv", content.encode(encoding))
    assert pairs(read(path)) == [(f"a{SEPARATORS}b", "c\r\nd")]


def test_escaped_pairs_of_surrogates_are_one_character(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", b'{"input": "\\ud83c\\udfa9", "output": "hat"}\n')
    assert pairs(read(path)) == [("🎩", "hat")]


def test_a_replacement_character_of_the_author_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", rows({"input": "What is \ufffd?", "output": "U+FFFD"}))
    assert pairs(read(path)) == [("What is \ufffd?", "U+FFFD")]


GOOD = json.dumps({"input": "a", "output": "b"}).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", GOOD + b"\n" + '{"input": "Café", "output": "b"}'.encode("cp1252") + b"\n"),
        ("rows.json", b"[" + GOOD + b",\n" + '{"input": "Café", "output": "b"}'.encode("cp1252") + b"]"),
        ("rows.csv", "input,output\nCafé,b\n".encode("cp1252")),
        ("rows.txt", "One\nCafé\n".encode("cp1252")),
    ],
)
def test_bytes_that_are_not_utf8_name_line_and_setting(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(DataError, match=rf"{name} line 2: found byte 0xe9, wanted UTF-8\. Set `data\.encoding`"):
        read(write(tmp_path, name, content))


def test_bytes_outside_a_named_encoding_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", b"input,output\na,b\nc,\x81\n")
    with pytest.raises(DataError, match=r"rows\.csv line 3: found byte 0x81, wanted cp1252"):
        read(path, encoding="cp1252")


def test_half_a_pair_in_a_rare_encoding_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", b"input,output\na,b\nc,+2Dw-\n")
    with pytest.raises(DataError, match=r"rows\.csv line 3: found half of a surrogate pair, wanted text"):
        read(path, encoding="utf-7")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_names_the_setting(tmp_path: Path, name: str, encoding: str) -> None:
    path = write(tmp_path, name, GOOD.decode().encode(encoding))
    with pytest.raises(DataError, match=rf"{name} line 1: found a NUL byte.*data\.encoding: {encoding}`"):
        read(path)


@pytest.mark.parametrize("encoding", sorted(set(aliases.values())))
def test_any_bytes_in_any_encoding_are_rows_or_one_error(tmp_path: Path, encoding: str) -> None:
    try:
        config = DataConfig(path="x", encoding=encoding)
    except ValueError:
        return
    for content in (GOOD, b"input,output\nfo\xe9\xff\x80 \\ud83c,b\n"):
        with suppress(DataError):
            read(write(tmp_path, "rows.csv", content), encoding=config.encoding)


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "rot13", "", "idna", "punycode", "unicode_escape"])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match=r"must be a text encoding that Python knows"):
        DataConfig(path="x", encoding=encoding)
