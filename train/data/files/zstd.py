"""The content of Zstandard files. zstandard's own reader takes a file that was cut off for a whole one."""

import io
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

_CHUNK_BYTES = 1 << 14


class ZstdReader(io.RawIOBase):
    """Reads the decompressed bytes of all frames.

    Raises:
        EOFError: The file ends inside a frame.
        zstandard.ZstdError: It is damaged.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._pieces = _decompressed(stream)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io's own buffers are of this type
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _decompressed(stream: BinaryIO) -> Iterator[bytes]:
    packed = stream.read(_CHUNK_BYTES)
    while packed:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not packed:
                raise EOFError("it ends inside a Zstandard frame, so a part is missing")
            yield frame.decompress(packed)
            packed = frame.unused_data if frame.eof else stream.read(_CHUNK_BYTES)
        packed = packed or stream.read(_CHUNK_BYTES)
