"""One question and one answer a row, in every container."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from tests.train.data.files_on_disk import pairs, read, rows, told, write
from train.errors import DataError

ROWS = [{"input": f"question {number}", "output": f"answer {number}\nsecond line"} for number in range(1, 11)]
EXPECTED = [(row["input"], row["output"]) for row in ROWS]


def csv_of(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["input", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet_of(values: Sequence[Mapping[str, object]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(values)), sink)
    return sink.getvalue()


def feather_of(values: Sequence[Mapping[str, object]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(pa.Table.from_pylist(list(values)), sink)
    return sink.getvalue()


def stream_of(values: Sequence[Mapping[str, object]]) -> bytes:
    """Arrow's stream format, as `datasets` saves it."""
    sink, table = io.BytesIO(), pa.Table.from_pylist(list(values))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


def one_block_of(content: bytes) -> bytes:
    """A Zstandard frame that is cut off between two blocks: all that is there can be read."""
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return packer.compress(content) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def zip_of(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__dot__", "."), content)
    return sink.getvalue()


JSONL = rows(*ROWS)
SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
CONTAINERS = {
    "rows.jsonl": JSONL,
    "rows.ndjson": JSONL,
    "rows.json": JSONL,
    "rows": JSONL,
    "crlf.jsonl": JSONL.replace(b"\n", b"\r\n"),
    "blank-lines.jsonl": b"\n" + JSONL.replace(b"\n", b"\n \n"),
    "no-end.jsonl": JSONL.rstrip(),
    "list.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "list.jsonl": json.dumps(ROWS, indent=1).encode(),
    "object.json": json.dumps({"version": 1, "data": ROWS, "tags": ["a"]}, indent=2).encode(),
    "far-apart.json": ("[\n" + json.dumps(ROWS, indent=2)[1:].replace("\n  },", "\n\n  },", 1)).encode(),
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "rows.csv": csv_of(","),
    "semicolons.csv": csv_of(";"),
    "excel.csv": b"sep=|\r\n" + csv_of("|"),
    "rows.tsv": csv_of("\t"),
    "rows.parquet": parquet_of(ROWS),
    "rows.feather": feather_of(ROWS),
    "rows.arrow": stream_of(ROWS),
    "mac.jsonl": JSONL.replace(b"\n", b"\r"),
    "mixed-ends.jsonl": JSONL.replace(b"\n", b"\r\n", 2).replace(b"}\n", b"}\r", 3),
    "mixed-ends.csv": csv_of(",").replace(b'"\r\n', b'"\n', 3).replace(b'"\r\n', b'"\r', 2),
    "rows.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "two-parts.jsonl.gz": gzip.compress(JSONL[:100], mtime=0) + gzip.compress(JSONL[100:], mtime=0),
    "not-named-so.jsonl": gzip.compress(JSONL, mtime=0),
    "rows.jsonl.zst": zstandard.compress(JSONL),
    "two-frames.jsonl.zst": zstandard.compress(JSONL[:100]) + SKIPPABLE_FRAME + zstandard.compress(JSONL[100:]),
    "rows.csv.gz": gzip.compress(csv_of(","), mtime=0),
    "rows.parquet.gz": gzip.compress(parquet_of(ROWS), mtime=0),
    "rows.arrow.zst": zstandard.compress(stream_of(ROWS)),
    "rows.zip": zip_of(inner__dot__csv=csv_of(",")),
    "rows.jsonl.zip": zip_of(rows__dot__jsonl=JSONL),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert pairs(read(write(tmp_path, name, CONTAINERS[name]))) == EXPECTED


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("rows.jsonl", [1, 2, 3]),
        ("blank-lines.jsonl", [2, 4, 6]),
        ("pretty.json", [2, 6, 10]),
        ("object.json", [4, 8, 12]),
        ("objects.json", [1, 5, 9]),
        ("rows.csv", [2, 4, 6]),
        ("excel.csv", [3, 5, 7]),
        ("far-apart.json", [3, 8, 12]),
        ("rows.parquet", [1, 2, 3]),
        ("rows.arrow", [1, 2, 3]),
    ],
)
def test_a_row_knows_the_line_where_it_begins(tmp_path: Path, name: str, lines: list[int]) -> None:
    examples = read(write(tmp_path, name, CONTAINERS[name])).examples
    assert [example.origin.line for example in examples[:3] if example.origin] == lines


@pytest.mark.parametrize("name", ["notes.txt", "notes.md", "notes.md.gz"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    content = b"# Title\r\n\r\n  indented\r\n"
    path = write(tmp_path, name, gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    assert [example.text for example in read(path).examples] == ["# Title\n\n  indented\n"]


def test_turns_in_parquet_lose_the_keys_of_other_turns(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"city": "Bonn"}}}
    other = {"id": "c2", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    turns = [
        {"role": "user", "content": "Find and add."},
        {"role": "assistant", "tool_calls": [call, other]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
        {"role": "assistant", "content": "Done."},
    ]
    path = write(tmp_path, "calls.parquet", parquet_of([{"messages": turns}]))
    assert told(read(path).examples[0]) == (
        'u: Find and add. > a: find{"city": "Bonn"}add{"a": 1, "b": 2} | t: found | a: Done.'
    )


@pytest.mark.parametrize(
    ("output", "good", "message"),
    [
        ({"x": float("nan")}, {"x": 1.5}, r"line 1: `output\.x`: found NaN, wanted a finite number"),
        (float("inf"), 1.5, r"line 1: `output`: found Infinity, or a number too large"),
        (float("nan"), 1.5, r"line 1: `output`: found nothing, wanted text or a JSON value"),
    ],
)
def test_numbers_in_parquet_must_be_finite(tmp_path: Path, output: object, good: object, message: str) -> None:
    values = [{"input": "a", "output": output}, {"input": "b", "output": good}]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, "rows.parquet", parquet_of(values)))


def test_a_missing_number_that_nothing_uses_is_no_fault(tmp_path: Path) -> None:
    values = [{"input": "a", "output": "b", "score": float("nan")}, {"input": "c", "output": "d", "score": 0.5}]
    assert pairs(read(write(tmp_path, "rows.parquet", parquet_of(values)))) == [("a", "b"), ("c", "d")]


ODD_ANSWERS = {
    "a year that Python lacks": pa.array([2**60], pa.timestamp("s")),
    "a day that Python lacks": pa.array([2**30], pa.date32()),
    "a duration that Python lacks": pa.array([2**62], pa.duration("s")),
    "a map with one key twice": pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64())),
    "two fields of one name": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]),
}


@pytest.mark.parametrize("kind", ODD_ANSWERS)
def test_a_value_that_cannot_be_read_names_its_row(tmp_path: Path, kind: str) -> None:
    odd, sink = ODD_ANSWERS[kind], io.BytesIO()
    table = pa.table({"input": ["a", "b"], "output": pa.concat_arrays([pa.nulls(1, odd.type), odd])})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"rows\.arrow line 2: `output`: found a value that cannot be read \("):
        read(write(tmp_path, "rows.arrow", sink.getvalue()))


def test_an_object_in_parquet_keeps_its_null(tmp_path: Path) -> None:
    values = [{"input": "a", "output": {"x": 1, "y": None}}, {"input": "b", "output": {"x": 2, "y": 3}}]
    path = write(tmp_path, "objects.parquet", parquet_of(values))
    assert pairs(read(path)) == [("a", '{"x": 1, "y": null}'), ("b", '{"x": 2, "y": 3}')]


def test_turns_in_a_cell_are_read_as_json(tmp_path: Path) -> None:
    turns = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    content = 'messages\n"' + turns.replace('"', '""') + '"\n'
    assert pairs(read(write(tmp_path, "chat.csv", content.encode()))) == [("Hi", "Hello")]


def test_a_number_keeps_its_cell_in_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "codes.csv", b"input,output\npostal code,01067\nmissing,NA\n")
    assert pairs(read(path)) == [("postal code", "01067"), ("missing", "NA")]


def test_a_url_is_read_through_fsspec() -> None:
    fsspec.filesystem("memory").pipe_file("/reading/rows.jsonl", JSONL)
    found = read("memory://reading/rows.jsonl")
    assert (pairs(found), found.files[0].name) == (EXPECTED, "rows.jsonl")


def test_a_table_is_read_through_fsspec() -> None:
    fsspec.filesystem("memory").pipe_file("/tables/rows.parquet", CONTAINERS["rows.parquet"])
    assert pairs(read("memory://tables/rows.parquet")) == EXPECTED


class BrokenOffError(Exception):
    """As HTTP clients raise it: no OSError."""


class BrokenOff(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system whose connection ends while a file is read."""

    protocol = "broken-off"

    def info(self, path: str, **_: object) -> dict[str, object]:
        return {"name": path, "size": 100, "type": "file"}

    def _open(self, path: str, **_: object) -> io.BytesIO:
        raise BrokenOffError("connection lost")


fsspec.register_implementation("broken-off", BrokenOff, clobber=True)


def test_a_lost_connection_is_one_error() -> None:
    with pytest.raises(DataError, match=r"Cannot read .*rows\.jsonl': connection lost\. Check `data\.path`"):
        read("broken-off://rows.jsonl")


def test_a_bucket_is_read_like_a_folder() -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/a/1.jsonl", JSONL)
    fsspec.filesystem("memory").pipe_file("/bucket/b/1.jsonl", JSONL)
    assert [file.name for file in read("memory://bucket").files] == ["a/1.jsonl", "b/1.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", r"empty\.jsonl is empty"),
        ("mark.jsonl", b"\xef\xbb\xbf", r"mark\.jsonl has no rows"),
        ("blank.jsonl", b"\n \n", r"blank\.jsonl has no rows"),
        ("list.json", b"[]", r"list\.json has no rows"),
        ("header.csv", b"input,output\n", r"header\.csv has no rows"),
        ("empty.jsonl.gz", gzip.compress(b"", mtime=0), r"empty\.jsonl\.gz is empty"),
        ("short.jsonl.gz", gzip.compress(JSONL, mtime=0)[:-20], r"Cannot read .*short\.jsonl\.gz"),
        ("short.jsonl.zst", zstandard.compress(JSONL)[:-20], r"short\.jsonl\.zst"),
        ("block.jsonl.zst", one_block_of(JSONL), r"block\.jsonl\.zst': it ends inside a Zstandard frame"),
        ("more.jsonl.zst", zstandard.compress(JSONL) + b"more", r"more\.jsonl\.zst"),
        ("digits.json", b'[{"input": "a", "output": ' + b"9" * 5000 + b"}]", r"found a number of thousands of digits"),
        ("short.parquet", parquet_of(ROWS)[:-20], r"short\.parquet is damaged"),
        ("short.arrow", stream_of(ROWS)[:200], r"short\.arrow"),
        ("text.parquet", b"hello", r"text\.parquet is damaged, or no Parquet file"),
        ("rows.xlsx", zip_of(xl=b""), r"rows\.xlsx is a workbook\. Save its sheet as CSV"),
        ("rows.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", r"rows\.xls is a workbook"),
        (
            "lfs.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            r"lfs\.jsonl is a Git LFS pointer.*git lfs pull",
        ),
        ("two.zip", zip_of(a__dot__csv=b"a", b__dot__csv=b"b"), r"holds 2 files \('a\.csv', 'b\.csv'\); wanted one"),
        ("data.bin", b"\x00\x01\x02", r"data\.bin: unknown kind of file; wanted one that ends in \.jsonl"),
        ("junk.jsonl", bytes(range(256)), r"junk\.jsonl line 1: found a NUL byte, wanted text"),
        ("page.jsonl", b"\x89PNG\r\n", r"page\.jsonl line 1: found '.*x89PNG', wanted JSON"),
        ("database.csv", b"SQLite format 3\0" * 9, r"database\.csv line 1: found a NUL byte, wanted text"),
        ("rows.csv", b"input,output\na\0b,c\n", r"rows\.csv line 2: found a NUL byte, wanted text"),
        ("spaces.csv", b" \n \n", r"spaces\.csv has no rows"),
        ("empty.zip", zip_of(), r"the ZIP archive holds no file; wanted one"),
        ("page.json", b"<!DOCTYPE html>", r"page\.json line 1: found '<!DOCTYPE html>', wanted JSON"),
        ("two-lists.json", b'{"a": [{"x": 1}], "b": [{"x": 2}]}', r"2 lists of rows \('a', 'b'\); wanted one"),
        ("twice.csv", b"input,output,output\na,b,c\n", r"column 'output' appears 2 times"),
        ("quote.csv", b'input,output\na,"b\n', r"quote\.csv line 2: found a row that is not valid CSV"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path, name, content))
    assert "\n" not in str(caught.value)
