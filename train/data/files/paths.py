"""`data.path` to files: a file, folder, glob or fsspec URL, or several of them."""

import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from train.errors import DataError

COMPRESSIONS = (".gz", ".zst", ".zip")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
EXCEL_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".ods")
KNOWN = f"{', '.join(ROW_SUFFIXES + TEXT_SUFFIXES)}, each also with {', '.join(COMPRESSIONS)}"
# Written beside data by `datasets` and hubs.
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_CHUNK_BYTES = 1 << 20
_MAX_LISTED = 5
_CREDENTIALS = re.compile(r"/[^/@\s]*:[^/@\s]*@")
_HTTP = ("http://", "https://")


@dataclass(frozen=True)
class DataFile:
    """A file of a file system that fsspec knows.

    Attributes:
        name: Short name for messages and origins, relative to the given folder or glob.
    """

    name: str
    path: str
    fs: Any

    @property
    def suffix(self) -> str:
        """Its last suffix in lower case, without a compression's."""
        return suffix_of(self.path)

    def open(self) -> BinaryIO:
        """Open to read bytes at any position; a remote file is copied to a temporary one first.

        Raises:
            DataError: It cannot be read.
        """
        try:
            stream = self.fs.open(self.path, "rb") if isinstance(self.fs, LocalFileSystem) else self._copied()
        except Exception as error:  # each of fsspec's backends has its own
            raise unreadable(self.path, error) from error
        return cast(BinaryIO, stream)

    def _copied(self) -> object:
        with ExitStack() as failed, self.fs.open(self.path, "rb") as stream:
            copy = failed.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, copy, _CHUNK_BYTES)
            copy.seek(0)
            failed.pop_all()
        return copy


@dataclass(frozen=True)
class FileDigest:
    """Identity of a file's bytes, as stored (compressed, if it is)."""

    name: str
    size_bytes: int
    sha256: str


def suffix_of(path: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePosixPath(_without_query(path)).suffixes]
    while suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def find_files(paths: Sequence[str]) -> tuple[list[DataFile], list[str]]:
    """The files that paths name, in their order (folders and globs sorted), and notes on files that are not read.

    Raises:
        DataError: A path does not exist, or a folder has no file of a known kind.
    """
    files: list[DataFile] = []
    notes: list[str] = []
    for path in paths:
        found, skipped = _found(path)
        files += found
        if skipped:
            more = f" and {len(skipped) - _MAX_LISTED:,} more" if len(skipped) > _MAX_LISTED else ""
            notes.append(f"Not read in {_last_part(path)}: {', '.join(skipped[:_MAX_LISTED])}{more}.")
    by_path = list({(id(file.fs), file.path): file for file in files}.values())
    return _told_apart(by_path), notes


def _told_apart(files: list[DataFile]) -> list[DataFile]:
    """The files, those of one name with as many folders before it as tell them apart."""
    counts = Counter(file.name for file in files)
    longer = [file if counts[file.name] == 1 else replace(file, name=_longer_name(file)) for file in files]
    return files if longer == files else _told_apart(longer)


def _longer_name(file: DataFile) -> str:
    """Its name with the folder before it; the same if there is none."""
    folder = _printable(_without_query(file.path)).removesuffix(file.name).rstrip("/")
    return f"{_last_part(folder)}/{file.name}" if folder else file.name


def digest_of(file: DataFile) -> FileDigest:
    """Hash a file's bytes.

    Raises:
        DataError: It cannot be read.
    """
    digest, size_bytes = hashlib.sha256(), 0
    with file.open() as stream:
        try:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
        except Exception as error:
            raise unreadable(file.path, error) from error
    return FileDigest(file.name, size_bytes, digest.hexdigest())


def unreadable(path: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if not reason or reason == path:
        reason = f"not there, or not reachable ({type(error).__name__})"
    reason = _CREDENTIALS.sub("/", reason.replace(path, _without_secrets(path))).rstrip(".")
    return DataError(f"Cannot read {_without_secrets(path)!r}: {reason}. Check `data.path`.")


def _without_secrets(url: str) -> str:
    """A URL without its credentials and query."""
    return _without_query(_CREDENTIALS.sub("/", url)) if "://" in url else url


def _found(path: str) -> tuple[list[DataFile], list[str]]:
    """Files of one path; in a folder or glob, also the names of those that are not read."""
    try:
        # Not by `url_to_fs` for a local path, which may hold what URLs give a meaning (`::`).
        fs, root = fsspec.url_to_fs(path) if "://" in path else (fsspec.filesystem("file"), os.path.abspath(path))
        if path.startswith(_HTTP):  # it has no folders
            return [DataFile(_last_part(path), root, fs)], []
        if not fs.exists(root) and any(char in path for char in "*?["):
            matches = [name for name in sorted(fs.glob(root)) if not fs.isdir(name)]
            return _known(path, fs, matches, _fixed_part(root))
        if fs.isdir(root):
            inside = [name for name in sorted(fs.find(root)) if not _is_hidden(name, root)]
            return _known(path, fs, inside, root)
        fs.info(root)  # raises if it does not exist
    except FileNotFoundError as error:
        raise DataError(f"{unreadable(path, error)}{_hub_hint(path)}") from error
    except DataError:
        raise
    except Exception as error:  # each of fsspec's backends has its own
        raise unreadable(path, error) from error
    return [DataFile(_last_part(path), root, fs)], []


def _hub_hint(path: str) -> str:
    """For what may be a hub's name of a data set, as `owner/name`."""
    owner, _, name = path.rstrip("/").rpartition("/")
    if "://" in path or not owner or PurePosixPath(name).suffix:
        return ""
    return f" If it is a hub's data set, write `hf://datasets/{PurePosixPath(owner).name}/{name}`."


def _known(path: str, fs: Any, found: list[str], root: str) -> tuple[list[DataFile], list[str]]:
    """The files of a folder that hold rows, and the names of the others.

    Text and Markdown files are read only if there are no files of rows: beside data, they describe it.
    """
    names = {file: file.removeprefix(root).lstrip("/") or _last_part(file) for file in found}
    rows = [file for file in found if _has_rows(file)]
    read = rows or [file for file in found if suffix_of(file) in TEXT_SUFFIXES]
    if not read:
        books = " Excel workbooks must be saved as CSV (UTF-8)." if any(_is_excel(file) for file in found) else ""
        holds = (
            f"holds {', '.join(_printable(names[file]) for file in found[:_MAX_LISTED])}" if found else "has no files"
        )
        raise DataError(f"{_without_secrets(path)!r} {holds}; wanted files that end in {KNOWN}.{books}")
    is_read = set(read)
    skipped = [_printable(names[file]) for file in found if file not in is_read]
    return [DataFile(_printable(names[file]), file, fs) for file in read], skipped


def _has_rows(path: str) -> bool:
    suffix = suffix_of(path) or (".zip" if path.lower().endswith(".zip") else "")
    return suffix in (*ROW_SUFFIXES, ".zip") and _last_part(path) not in _DESCRIPTIONS


def _is_excel(path: str) -> bool:
    return path.lower().endswith(EXCEL_SUFFIXES)


def _is_hidden(path: str, root: str) -> bool:
    parts = path.removeprefix(root).split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _fixed_part(pattern: str) -> str:
    """The folder of a glob before its first wildcard."""
    first = min(pattern.find(char) for char in "*?[" if char in pattern)
    return pattern[:first].rpartition("/")[0]


def _last_part(path: str) -> str:
    plain = _without_query(path)
    return _printable(plain.rstrip("/").rpartition("/")[2] or plain)


def _without_query(path: str) -> str:
    return path.partition("?")[0] if path.startswith(_HTTP) else path


def _printable(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
