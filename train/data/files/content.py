"""Bytes and text of a file: decompressed, and decoded without replacing a character."""

import gzip
import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO, cast

import charset_normalizer

from train.data.files.paths import EXCEL_SUFFIXES, DataFile, suffix_of
from train.data.files.zstd import ZstdReader
from train.errors import DataError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second: an empty archive
_LFS = b"version https://git-lfs"
_OLE = b"\xd0\xcf\x11\xe0"
"""Start of Excel's binary workbooks."""
_UTF8_MARK = b"\xef\xbb\xbf"
_MARKS = (
    (_UTF8_MARK, "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_UTF8 = ("utf-8", "utf8", "utf_8", "utf-8-sig", "utf_8_sig")
_GUESSED = ["cp1252", "cp1251", "cp932", "gb18030", "cp949"]
"""Encodings that a guess may name; others are rare, or cannot be told apart from these."""
_PEEK_BYTES = 64
_SAMPLE_BYTES = 4096


class Content:
    """An open file, decompressed. Close it when done.

    Attributes:
        suffix: Suffix of the file, or of the only member of a ZIP archive; "" if it has none.
        head: The first bytes.
        encoding: The encoding that the byte order mark names, otherwise the configured one.
        is_seekable: The stream is the file itself, which may be read at any position.
    """

    def __init__(self, file: DataFile, encoding: str) -> None:
        self.name = file.name
        self.suffix = file.suffix
        self.is_seekable = True
        self._open = ExitStack()
        try:
            self.stream = self._opened(file)
            self.head = _peek(self.stream)
            _refuse_known_strangers(self)
        except BaseException:
            self._open.close()
            raise
        self.encoding = next((name for mark, name in _MARKS if self.head.startswith(mark)), encoding)
        self.is_utf8 = self.encoding.lower() in _UTF8
        if self.head.startswith(_UTF8_MARK):
            self.stream.read(len(_UTF8_MARK))

    def __enter__(self) -> "Content":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _opened(self, file: DataFile) -> BinaryIO:
        raw = self._open.enter_context(file.open())
        stream = self._open.enter_context(_buffered(raw))
        head = _peek(stream)
        if head.startswith(_GZIP):
            self.is_seekable = False
            return _buffered(self._open.enter_context(gzip.GzipFile(fileobj=stream)))
        if head.startswith(_ZSTD):
            self.is_seekable = False
            return _buffered(self._open.enter_context(ZstdReader(stream)))
        if head.startswith(_ZIP):
            self.is_seekable = False
            return _buffered(io.BytesIO(self._member(stream.read())))
        return stream

    def _member(self, archive: bytes) -> bytes:
        """The only file in a ZIP archive."""
        try:
            with zipfile.ZipFile(io.BytesIO(archive)) as opened:
                return opened.read(self._only_member(opened))
        except (ValueError, RuntimeError, struct.error) as error:  # zipfile's for damaged archives, beside its own
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.name}: the ZIP archive is damaged ({error}).") from error

    def _only_member(self, opened: zipfile.ZipFile) -> zipfile.ZipInfo:
        inside = [item for item in opened.infolist() if not item.is_dir() and "__MACOSX/" not in item.filename]
        names = [item.filename for item in inside]
        if self.suffix in EXCEL_SUFFIXES or any(name.startswith("xl/") for name in names):
            raise _excel(self.name)
        if len(inside) != 1:
            listed = ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
            files = f"{len(inside)} files ({listed})" if inside else "no file"
            raise DataError(
                f"{self.name}: the ZIP archive holds {files}; wanted one. "
                "Unpack it, and give the folder in `data.path`."
            )
        if inside[0].flag_bits & 1:
            raise DataError(f"{self.name}: the ZIP archive is encrypted. Unpack it, and give the file in `data.path`.")
        self.suffix = suffix_of(names[0])
        return inside[0]

    def lines(self) -> Iterator[bytes]:
        """Its lines in UTF-8, with their line feeds; only a line feed ends a line.

        In a UTF-8 file, lines are not checked yet.
        """
        if self.is_utf8:
            yield from self.stream
        else:
            yield from io.BytesIO(self.text().encode())

    def text(self) -> str:
        """All of it.

        Raises:
            DataError: It is not in its encoding, or is no text.
        """
        content = self.stream.read()
        try:
            text = content.decode("utf-8" if self.is_utf8 else self.encoding)
            text.encode()  # some encodings allow half surrogate pairs
        except UnicodeDecodeError as error:
            before = content[: error.start].decode(self.encoding, errors="ignore")
            raise self.wrong_encoding(before.count("\n") + 1, content, error.start) from None
        except UnicodeEncodeError as error:
            line = text.count("\n", 0, error.start) + 1
            raise DataError(f"{self.name} line {line}: found half of a surrogate pair, wanted text.") from None
        if "\0" in text:
            raise self.binary(text.count("\n", 0, text.index("\0")) + 1)
        return text

    def binary(self, line: int) -> DataError:
        """The error for a NUL byte, which no text has."""
        likely = "utf-16-be" if self.head[:1] == b"\0" else "utf-16-le"
        return DataError(
            f"{self.name} line {line}: found a NUL byte, wanted text. If it is UTF-16 without a byte order mark, set "
            f"`data.encoding: {likely}`; otherwise it is another kind of file."
        )

    def wrong_encoding(self, line: int, content: bytes, position: int) -> DataError:
        """The error for a byte that is not in the file's encoding."""
        encoding = "UTF-8" if self.is_utf8 else self.encoding
        sample = content[max(0, position - _SAMPLE_BYTES) : position + _SAMPLE_BYTES]
        return DataError(
            f"{self.name} line {line}: found byte 0x{content[position]:02x}, wanted {encoding}. Set `data.encoding` to "
            f"the file's encoding{_guess(sample)}, or save the file as UTF-8."
        )


def _guess(sample: bytes) -> str:
    if b"\0" in sample:
        return " (it is binary, or UTF-16: utf-16-le)"
    likely = charset_normalizer.from_bytes(sample, cp_isolation=_GUESSED).best()
    return f" (a guess: {likely.encoding})" if likely else " (cp1252 on Windows in Western Europe)"


def _refuse_known_strangers(content: Content) -> None:
    """Raise `DataError` for files that are often given by mistake."""
    if not content.head:
        raise DataError(f"{content.name} is empty.")
    if content.head.startswith(_LFS):
        raise DataError(f"{content.name} is a Git LFS pointer, not the data. Run `git lfs pull` where it was cloned.")
    if content.head.startswith(_OLE) or content.suffix in EXCEL_SUFFIXES:
        raise _excel(content.name)


def _excel(name: str) -> DataError:
    return DataError(f"{name} is a workbook. Save its sheet as CSV (in Excel: Save As, CSV UTF-8), and give that file.")


def _buffered(stream: object) -> BinaryIO:
    return io.BufferedReader(cast(io.RawIOBase, stream), 1 << 18)


def _peek(stream: BinaryIO) -> bytes:
    return cast(io.BufferedReader, stream).peek(_PEEK_BYTES)[:_PEEK_BYTES]
