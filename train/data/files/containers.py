"""Rows of any file: the container is recognised by its first bytes or its suffix."""

import zipfile
import zlib

import pyarrow as pa
import zstandard

from config.dataset import Origin
from train.data.files.content import Content
from train.data.files.json_files import json_records
from train.data.files.paths import KNOWN, TEXT_SUFFIXES, DataFile, unreadable
from train.data.files.records import Records, SourceRecord
from train.data.files.tables import arrow_records, csv_records, parquet_records
from train.errors import DataError

_PARQUET, _ARROW = b"PAR1", b"ARROW1"
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, zstandard.ZstdError, NotImplementedError)


def read_records(file: DataFile, encoding: str) -> Records:
    """The rows of a file in order, and a `Fault` for each one that cannot be parsed.

    A text or Markdown file is one row with the column `text`.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    try:
        with Content(file, encoding) as content:
            yield from _records(content)
    except pa.ArrowException as error:
        raise DataError(f"{file.name} is damaged, or another kind of file: {_first_line(error)}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name}: found text that is not UTF-8 ({error.reason}), wanted UTF-8.") from error
    except _BROKEN as error:
        raise unreadable(file.path, error) from error


def is_document(file: DataFile) -> bool:
    return file.suffix in TEXT_SUFFIXES


def _records(content: Content) -> Records:
    if content.head.startswith(_PARQUET):
        return parquet_records(content)
    if content.head.startswith(_ARROW) or content.suffix in (".arrow", ".feather"):
        return arrow_records(content)
    if content.suffix in (".csv", ".tsv"):
        return csv_records(content)
    if content.suffix in TEXT_SUFFIXES:
        return _document(content)
    if content.suffix in (".jsonl", ".ndjson", ".json") or content.head.lstrip()[:1] in (b"{", b"["):
        return json_records(content)
    if content.suffix == ".parquet":
        raise DataError(f"{content.name} is damaged, or no Parquet file: it must begin with 'PAR1'.")
    raise DataError(f"{content.name}: unknown kind of file; wanted one that ends in {KNOWN}.")


def _document(content: Content) -> Records:
    # As text editors show it: both kinds of line ends are one.
    text = content.text().replace("\r\n", "\n")
    if text.strip():
        yield SourceRecord(Origin(file=content.name, line=1), {"text": text})


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
