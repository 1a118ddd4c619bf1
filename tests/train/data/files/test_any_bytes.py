"""Whatever the bytes are: examples, or one error with short lines. Never another exception."""

import gzip
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.train.data.files_on_disk import read
from train.data.formats import FORMATS
from train.errors import DataError

MAX_LINES = 11
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", "", ".zip", ".jsonl.gz", ".csv.zst")
STARTS = (
    b"",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"PAR1",
    b"ARROW1\0\0",
    b"\xff\xff\xff\xff",
    b"PK\x03\x04",
    b"{",
    b"[",
    b"\x1f\x8b",
)
COLUMNS = sorted(
    {column for layout in FORMATS for column in layout.columns} | {"role", "content", "from", "value", "id"}
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["user", "gpt", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]) | values, "content": values})
records = st.dictionaries(st.sampled_from(COLUMNS), values | st.lists(turns | values, max_size=3), max_size=6)
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(name: str, content: bytes, **config: Any) -> None:
    """Read one file; what is raised must be a `DataError` of short lines, what is read must be text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            found = read(path, **config)
        except DataError as error:
            lines = str(error).splitlines()
            assert 1 <= len(lines) <= MAX_LINES
            str(error).encode()
        else:
            assert found.examples
            for example in found.examples:
                turns = (*example.prompt, *example.completion, *example.chosen, *example.rejected)
                json.dumps([turn.for_template() for turn in turns], allow_nan=False).encode()
                "".join([example.text, *(turn.content for turn in turns)]).encode()


@pytest.mark.slow
@quick
@given(st.sampled_from(SUFFIXES), st.sampled_from(STARTS), st.binary(max_size=200))
def test_random_bytes(suffix: str, start: bytes, content: bytes) -> None:
    check(f"rows{suffix}", start + content)


@quick
@given(st.sampled_from([".jsonl", ".json"]), st.lists(records, min_size=1, max_size=4), st.sampled_from([None, 1]))
@pytest.mark.slow
def test_random_json(suffix: str, rows: list[dict[str, Any]], indent: int | None) -> None:
    text = "\n".join(json.dumps(row, indent=indent) for row in rows)
    check(f"rows{suffix}", text.encode())


@quick
@given(st.lists(records, min_size=1, max_size=3))
@pytest.mark.slow
def test_random_rows_in_a_list(rows: list[dict[str, Any]]) -> None:
    check("rows.json", json.dumps({"data": rows}).encode())
    check("rows.json", json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@quick
@given(st.sampled_from([layout.layout for layout in FORMATS]), st.lists(records, min_size=1, max_size=3))
@pytest.mark.slow
def test_random_rows_under_any_layout(layout: str, rows: list[dict[str, Any]]) -> None:
    complete = [dict.fromkeys(_required(layout), "x") | row for row in rows]
    check("rows.jsonl", "\n".join(map(json.dumps, complete)).encode(), layout=layout)


def _required(name: str) -> list[str]:
    layout = next(layout for layout in FORMATS if layout.layout == name)
    return [group[0] for group in layout.required]


@pytest.mark.slow
@quick
@given(st.text(alphabet='ab,;"\n\r\t\\ \x00\u2028é', max_size=80), st.booleans(), st.sampled_from([".csv", ".tsv"]))
def test_random_csv(text: str, has_header: bool, suffix: str) -> None:
    check(f"rows{suffix}", (("input,output\n" if has_header else "") + text).encode())


@pytest.mark.slow
@quick
@given(st.sampled_from([".parquet", ".arrow"]), st.integers(min_value=0), st.binary(min_size=1, max_size=8))
def test_damaged_tables(suffix: str, position: int, damage: bytes) -> None:
    sink, table = io.BytesIO(), pa.Table.from_pylist([{"input": "a" * 20, "output": str(i)} for i in range(5)])
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    content = bytearray(sink.getvalue())
    start = position % len(content)
    content[start : start + len(damage)] = damage
    check(f"rows{suffix}", bytes(content))


@pytest.mark.slow
@quick
@given(st.sampled_from(["gz", "zst", "zip"]), st.integers(min_value=0), st.binary(min_size=1, max_size=8))
def test_damaged_archives(kind: str, position: int, damage: bytes) -> None:
    rows = b'{"input": "a", "output": "b"}\n' * 20
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", rows)
    packed = {"gz": gzip.compress(rows), "zst": zstandard.compress(rows), "zip": sink.getvalue()}[kind]
    content = bytearray(packed)
    start = position % len(content)
    content[start : start + len(damage)] = damage
    check(f"rows.jsonl.{kind}", bytes(content))


@pytest.mark.parametrize("depth", [150, 100_000])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_deep_nesting_is_one_error(depth: int, suffix: str) -> None:
    nested = '{"input": "a", "output": ' + "[" * depth + "]" * depth + "}"
    check(f"rows{suffix}", nested.encode())
    check(f"rows{suffix}", ("messages\n" + "[" * depth).encode())


def test_bytes_that_are_half_a_character_in_utf16_are_one_error() -> None:
    check("rows.jsonl", b"\xff\xfe{\0\x3c\xd8}\0")
