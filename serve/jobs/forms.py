"""Multipart forms, read as a stream: fields are collected, and the file is written to its sink as it arrives."""

import asyncio
import codecs
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from serve.api.bodies import Places
from serve.errors import BodyTimeoutError, BodyTooLargeError, InvalidRequestError

_MAX_AT_ONCE = 16
_MAX_OF_TENANT = 4
_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 8192
_MAX_FORM_BYTES = 1 << 20
"""Maximum size of a form without its file: boundaries, headers and fields."""

_FORM_ROOM_BYTES = 8192
"""Reserved for a form's fields and headers if its whole body is limited."""

_FLUSH_BYTES = 1 << 20
_SLOWEST_BYTES_PER_S = 64 << 10
"""Minimum mean rate of an upload."""


class Sink(Protocol):
    """Where the bytes of a file go, off the event loop."""

    def write(self, content: bytes, /) -> object: ...


OpenSink = Callable[[str, dict[str, str]], Awaitable[Sink]]
"""Opens the sink of a file by its name and the fields that came before it."""

Run = Callable[[Callable[[bytes], object], bytes], Awaitable[object]]
"""Calls a sink's `write` in a thread."""


@dataclass
class _FormPart:
    disposition: bytes = b""
    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


class FormReader:
    """Reads forms with one file. Uploads have their own slots, so a slow one delays no completion.

    Args:
        timeout_s: Maximum wait for a slot, and for the next bytes of a form.
        max_bytes: Maximum size of a body, if a proxy in front limits it; None: no limit.
    """

    def __init__(self, timeout_s: float, run: Run, max_bytes: int | None = None) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._run = run
        self._places = Places(_MAX_AT_ONCE, _MAX_OF_TENANT)

    async def read(
        self, request: Request, tenant: str, file_field: str, max_bytes: int, open_sink: OpenSink
    ) -> dict[str, str]:
        """The fields of a form; its file was written to the sink.

        Args:
            file_field: Name of the file's field.
            max_bytes: Maximum size of the file.

        Raises:
            InvalidRequestError: Not a form, without the file, or with two.
            BodyTooLargeError: By its `content-length`, or by its real size.
            BodyTimeoutError: The body arrived too slowly.
            RateLimitedError: Too many others are being uploaded.
        """
        if self._max_bytes is not None:  # a larger body arrives cut off
            max_bytes = min(max_bytes, self._max_bytes - _FORM_ROOM_BYTES)
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > max_bytes + _MAX_FORM_BYTES:
            raise BodyTooLargeError(length[:20], max_bytes)
        async with self._places.place(tenant, self._timeout_s):
            form = _StreamedForm(_boundary(request), file_field, max_bytes, open_sink, self._run)
            async with _not_too_slow(self._timeout_s, form) as received:
                async for piece in request.stream():
                    await form.feed(piece)
                    received()
            return await form.end()


class _StreamedForm:
    """One form while it arrives."""

    def __init__(self, boundary: bytes, file_field: str, max_bytes: int, open_sink: OpenSink, run: Run) -> None:
        self.num_bytes = 0
        self._run = run
        self._fields: dict[str, str] = {}
        self._file_field = file_field
        self._max_bytes = max_bytes
        self._open_sink = open_sink
        self._sink: Sink | None = None
        self._filename: str | None = None
        self._num_file_bytes = 0
        self._unwritten = bytearray()
        self._part = _FormPart()
        self._num_parts = 0
        self._header = bytearray()
        self._header_value = bytearray()
        self._is_whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_end": self._end_form,
            },
        )

    async def feed(self, piece: bytes) -> None:
        self.num_bytes += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidRequestError(f"The body is not a form: {str(error)[:120]}.") from None
        if self.num_bytes - self._num_file_bytes > _MAX_FORM_BYTES:
            raise BodyTooLargeError(f"over {_MAX_FORM_BYTES} beside its file", _MAX_FORM_BYTES)
        await self._open()
        if len(self._unwritten) >= _FLUSH_BYTES:
            await self._flush()

    async def end(self) -> dict[str, str]:
        if not self._is_whole:
            raise InvalidRequestError("The form is incomplete: its last boundary is missing.")
        if self._filename is None:
            raise InvalidRequestError(f"The form has no file in its field {self._file_field!r}.", self._file_field)
        await self._open()
        await self._flush()
        return self._fields

    async def _open(self) -> None:
        if self._sink is None and self._filename is not None:
            self._sink = await self._open_sink(self._filename, self._fields)

    async def _flush(self) -> None:
        assert self._sink is not None
        content, self._unwritten = bytes(self._unwritten), bytearray()
        if content:
            await self._run(self._sink.write, content)

    def _begin_part(self) -> None:
        self._part = _FormPart()
        self._num_parts += 1
        if self._num_parts > _MAX_FIELDS + 1:  # also of fields that replace each other
            raise InvalidRequestError(f"The form has more than {_MAX_FIELDS} fields.")

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._part.disposition = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        self._part.name = _text(options.get(b"name", b""))
        if self._part.name != self._file_field:
            return
        if self._filename is not None:
            raise InvalidRequestError(f"The form has two files; send one in {self._file_field!r}.", self._file_field)
        # A client that streams bytes names no file.
        self._filename = self._part.filename = _text(options.get(b"filename", b"")) or self._file_field

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.filename is None:
            self._part.value += data[start:end]
            if len(self._part.value) > _MAX_FIELD_BYTES:
                name = self._part.name[:40]
                raise InvalidRequestError(f"The form's field {name!r} is longer than {_MAX_FIELD_BYTES} bytes.", name)
            return
        self._num_file_bytes += end - start
        if self._num_file_bytes > self._max_bytes:
            raise BodyTooLargeError(f"at least {self._num_file_bytes}", self._max_bytes)
        self._unwritten += data[start:end]

    def _end_part(self) -> None:
        if self._part.filename is None:
            self._fields[self._part.name] = _text(bytes(self._part.value))

    def _end_form(self) -> None:
        self._is_whole = True


@asynccontextmanager
async def _not_too_slow(timeout_s: float, form: _StreamedForm) -> AsyncIterator[Callable[[], None]]:
    """Limit the wait for each piece, and the mean rate; call the yielded function after each piece."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(timeout_s) as limit:

            def received() -> None:
                latest = began + timeout_s + form.num_bytes / _SLOWEST_BYTES_PER_S
                limit.reschedule(min(latest, loop.time() + timeout_s))

            yield received
    except TimeoutError:
        raise BodyTimeoutError(
            f"The upload was too slow: {form.num_bytes} bytes were received in {loop.time() - began:.0f} s. "
            f"Send the next bytes within {timeout_s:g} s, and at least {_SLOWEST_BYTES_PER_S} a second."
        ) from None


def _boundary(request: Request) -> bytes:
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:  # RFC 2046
        raise InvalidRequestError("The body must be a form: its `content-type` names no boundary.")
    return boundary


def _text(raw: bytes) -> str:
    try:
        return codecs.decode(raw, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequestError("A field of the form is not UTF-8.") from None
