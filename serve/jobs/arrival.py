"""Receive one uploaded file: check its fields and lines, and write its bytes to disk."""

import re
from collections.abc import Mapping
from typing import Literal, Protocol, get_args

from adapters.jobs.files import IncomingFile
from adapters.jobs.records import Purpose, StoredFile
from config.example_lines import ExampleError, ExampleFacts, ExampleLines
from serve.access.keys import KeyRecord
from serve.errors import InvalidRequestError
from serve.jobs.errors import ExampleFileError
from serve.jobs.examples import ExampleFiles
from serve.jobs.services import JobServices

UploadPurpose = Literal["fine-tune", "batch", "evals", "user_data"]
PURPOSES: tuple[UploadPurpose, ...] = get_args(UploadPurpose)
"""Purposes that clients may use; only the server uses those of result files."""

MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 24 * 3600
_SECONDS = re.compile(r"[0-9]{1,10}")
_MAX_FILENAME_CHARS = 255
_PIECE_BYTES = 1 << 20


class ArrivingFile:
    """The file of an upload form; a `Sink`.

    The form may have the purpose after the file. Until it is known, lines are checked as for fine-tuning, but an error
    is not raised.
    """

    def __init__(self, services: JobServices, examples: ExampleFiles, key: KeyRecord) -> None:
        self._services = services
        self._examples = examples
        self._key = key
        self._incoming: IncomingFile | None = None
        self._purpose: Purpose | None = None
        self._check: _LineCheck | None = None

    async def open(self, filename: str, fields: Mapping[str, str]) -> "ArrivingFile":
        """Open the file with the fields that precede it in the form."""
        if "purpose" in fields:
            self._purpose = purpose_of(fields.get("purpose"))
        self._check = _LineCheck() if self._purpose in (None, "fine-tune") else None
        self._incoming = await self._services.run(
            self._services.files.begin,
            self._key.tenant,
            self._purpose or "user_data",
            checked_filename(filename),
            expires_after_s=expiry_of(fields),
        )
        return self

    def write(self, content: bytes) -> None:
        assert self._incoming is not None
        self._incoming.write(content)
        if self._check is not None:
            self._check.write(content)
            if self._purpose is not None:
                self._check.raise_fault()

    def finish(self, fields: Mapping[str, str]) -> StoredFile:
        """Make the file visible, with all fields of the form.

        Raises:
            InvalidRequestError: A field is missing or invalid, or the content does not match the purpose.
        """
        assert self._incoming is not None
        purpose, expires_after_s = purpose_of(fields.get("purpose")), expiry_of(fields)
        facts = self._check.end() if self._check is not None and purpose == "fine-tune" else None
        self._incoming.purpose, self._incoming.expires_after_s = purpose, expires_after_s
        file = self._incoming.finish()
        if facts is not None:
            self._examples.learn(file, facts)
        return file

    def discard(self) -> None:
        """Delete what was written; no effect after `finish`."""
        if self._incoming is not None:
            self._incoming.discard()


class _LineCheck:
    """Check lines of a fine-tuning file; the first error is stored until `raise_fault` or `end`."""

    def __init__(self) -> None:
        self._lines = ExampleLines()
        self._fault: ExampleError | None = None

    def write(self, content: bytes) -> None:
        if self._fault is None:
            try:
                self._lines.write(content)
            except ExampleError as error:
                self._fault = error

    def raise_fault(self) -> None:
        if self._fault is not None:
            raise ExampleFileError(str(self._fault), self._fault.code, "file")

    def end(self) -> ExampleFacts:
        self.raise_fault()
        try:
            return self._lines.end()
        except ExampleError as error:
            raise ExampleFileError(str(error), error.code, "file") from None


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def check_content(content: _Readable) -> ExampleFacts:
    """Check the lines of a whole fine-tuning file.

    Raises:
        ExampleFileError: A line is not a valid example.
    """
    check = _LineCheck()
    while piece := content.read(_PIECE_BYTES):
        check.write(piece)
        check.raise_fault()
    return check.end()


def purpose_of(text: str | None) -> UploadPurpose:
    """Raises InvalidRequestError: Missing, or not in `PURPOSES`."""
    for purpose in PURPOSES:
        if text == purpose:
            return purpose
    got = "It is missing" if text is None else f"Got {text[:40]!r}"
    raise InvalidRequestError(f"`purpose` must be one of {', '.join(map(repr, PURPOSES))}. {got}.", "purpose")


def expiry_of(fields: Mapping[str, str]) -> int | None:
    """Seconds of a form's `expires_after[anchor]` and `expires_after[seconds]`; None if both are missing.

    Raises:
        InvalidRequestError: They are not valid.
    """
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequestError("`expires_after.anchor` must be 'created_at'.", "expires_after.anchor")
    digits = seconds if seconds is not None and _SECONDS.fullmatch(seconds) else "0"
    if not MIN_EXPIRY_S <= int(digits) <= MAX_EXPIRY_S:
        raise InvalidRequestError(
            f"`expires_after.seconds` must be {MIN_EXPIRY_S} to {MAX_EXPIRY_S}. Got {str(seconds)[:20]!r}.",
            "expires_after.seconds",
        )
    return int(digits)


def checked_filename(name: str) -> str:
    """The name without its path. It is shown, but never used as a path.

    Raises:
        InvalidRequestError: It is empty or too long, or has characters that cannot be shown.
    """
    plain = name.replace("\\", "/").rpartition("/")[2]
    if not plain or len(plain) > _MAX_FILENAME_CHARS or not plain.isprintable():
        raise InvalidRequestError(
            f"The file's name must have 1 to {_MAX_FILENAME_CHARS} printable characters. Got {plain[:40]!r}.", "file"
        )
    return plain
