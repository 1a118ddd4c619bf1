"""Read safetensors files by their headers: names, types and shapes, and data only on request."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import InvalidAdapterError
from adapters.store.strict_json import load_json

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_CHUNK_ITEMS = 1 << 22
_CACHED_ITEMS = 1 << 16  # so many, and what is computed of them, stay in a core's cache

# Bit masks of the exponent and of everything but the sign. All exponent bits set means NaN or infinity.
_FLOATS: dict[str, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    "F16": (np.uint16, 0x7C00, 0x7FFF),
    "BF16": (np.uint16, 0x7F80, 0x7FFF),
    "F32": (np.uint32, 0x7F80_0000, 0x7FFF_FFFF),
}
FLOAT_DTYPES = frozenset(_FLOATS)


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a safetensors file; `begin` and `end` are byte offsets in that file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """The tensors of a safetensors file by name, without reading their bytes.

    Raises:
        InvalidAdapterError: Not a safetensors file, or a truncated one.
    """
    try:
        return {header.name: header for header in _parse_headers(path)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidAdapterError(
            f"{path.name!r} is not a complete safetensors file ({error}). Save or copy it again."
        ) from error


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file that `read_headers` reads; empty if there is none."""
    with path.open("rb") as file:
        metadata = load_json(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def read_bytes(path: Path, header: TensorHeader) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One tensor's bytes."""
    return np.fromfile(path, np.uint8, count=header.end - header.begin, offset=header.begin)


def read_floats(path: Path, header: TensorHeader) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One tensor of a float type, in float32."""
    content = read_bytes(path, header)
    if header.dtype == "BF16":
        values = (content.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = content.view("<f2" if header.dtype == "F16" else "<f4").astype(np.float32)
    return values.reshape(header.shape)


def find_larger(
    path: Path, limits: Sequence[tuple[TensorHeader, float]], *, items: int = _CACHED_ITEMS
) -> dict[str, float]:
    """The largest magnitude of each float tensor that reaches its limit, in file order.

    NaN reaches every limit. Adjacent tensors of one type are scanned together, so that the cost depends on the bytes
    and not on the number of tensors.

    Args:
        limits: Tensors, each with a positive limit; infinity finds only what is not finite.
        items: Numbers in memory at a time.
    """
    found: dict[str, float] = {}
    bits_of = {header.name: _bits(header.dtype, limit) for header, limit in limits}
    with path.open("rb") as file:
        for run in _runs([header for header, _ in limits]):
            dtype = run[0].dtype
            least = min(bits_of[header.name] for header in run)
            if _largest_bits(file, dtype, run[0].begin, run[-1].end, items) < least:
                continue
            for header in run:
                largest = _largest_bits(file, dtype, header.begin, header.end, items)
                if largest >= bits_of[header.name]:
                    found[header.name] = _value(dtype, largest)
    return found


def is_zero(path: Path, header: TensorHeader) -> bool:
    """Whether a float tensor is all zeros; stops at the first other value."""
    unsigned, _, magnitude = _FLOATS[header.dtype]
    return not any(np.any(chunk & unsigned(magnitude)) for chunk in _chunks(path, header, unsigned))


def _parse_headers(path: Path) -> Iterator[TensorHeader]:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise ValueError(f"a header of {header_bytes} bytes in a file of {size_bytes}")
        entries = load_json(file.read(header_bytes))
    start = 8 + header_bytes
    headers = [_parse_entry(name, entry, start) for name, entry in entries.items() if name != "__metadata__"]
    _check_layout(headers, start, size_bytes)
    yield from headers


def _parse_entry(name: str, entry: dict[str, Any], start: int) -> TensorHeader:
    begin, end = entry["data_offsets"]
    for number in (begin, end, *entry["shape"]):
        if type(number) is not int or number < 0:  # bool is an int too
            raise ValueError(f"tensor {name[:200]!r} has {str(number)[:80]!r} as an offset or a dimension")
    header = TensorHeader(name, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)
    if header.dtype in _FLOATS:
        wanted = math.prod(header.shape) * np.dtype(_FLOATS[header.dtype][0]).itemsize
        if header.end - header.begin != wanted:
            raise ValueError(f"tensor {name[:200]!r} has {header.end - header.begin} bytes, not {wanted}")
    return header


def _check_layout(headers: Sequence[TensorHeader], start: int, size_bytes: int) -> None:
    """Check the format's rule that the tensors fill the file without overlap, gap or remainder."""
    position = start
    for header in sorted(headers, key=lambda header: (header.begin, header.end)):
        if header.begin != position or header.end < header.begin:
            raise ValueError(f"tensor {header.name[:200]!r} begins at byte {header.begin}, not {position}")
        position = header.end
    if position != size_bytes:
        raise ValueError(f"the tensors end at byte {position} of {size_bytes}")


def _runs(headers: Sequence[TensorHeader]) -> list[list[TensorHeader]]:
    """Group the tensors, in file order, into runs of adjacent ones with the same type."""
    runs: list[list[TensorHeader]] = []
    for header in sorted(headers, key=lambda header: (header.begin, header.end)):
        if runs and (runs[-1][-1].dtype, runs[-1][-1].end) == (header.dtype, header.begin):
            runs[-1].append(header)
        else:
            runs.append([header])
    return runs


def _largest_bits(file: BufferedReader, dtype: str, begin: int, end: int, items: int) -> int:
    """Bit pattern of the largest magnitude, ordered like the values: NaN above infinity; 0 if empty."""
    unsigned, _, magnitude = _FLOATS[dtype]
    values = np.empty(items, unsigned)
    magnitudes, all_but_sign = np.empty_like(values), unsigned(magnitude)
    file.seek(begin)
    num_left, largest = (end - begin) // values.itemsize, 0
    while num_left > 0:
        num_read = _read_into(file, values[: min(num_left, items)])
        chunk = np.bitwise_and(values[:num_read], all_but_sign, out=magnitudes[:num_read])
        largest = max(largest, int(chunk.max()))
        num_left -= num_read
    return largest


def _bits(dtype: str, value: float) -> int:
    """Bit pattern of the type's smallest number that is at least a positive value, else infinity's."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return int(_at_least(np.float16(value), value).view(np.uint16))
    single = int(_at_least(np.float32(value), value).view(np.uint32))
    return single if dtype == "F32" else -(-single >> 16)


def _at_least(rounded: Any, value: float) -> Any:
    return rounded if float(rounded) >= value else np.nextafter(rounded, type(rounded)(np.inf))


def _value(dtype: str, bits: int) -> float:
    if dtype == "F16":
        return float(np.uint16(bits).view(np.float16))
    return float(np.uint32(bits << 16 if dtype == "BF16" else bits).view(np.float32))


def _read_into(file: BufferedReader, values: np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]) -> int:
    """Fill the buffer from the file; returns the number of items.

    Raises:
        InvalidAdapterError: The file ends early because another process truncated it.
    """
    wanted = values.view(np.uint8).data
    if file.readinto(wanted) != len(wanted):
        raise InvalidAdapterError(f"{Path(file.name).name!r} ends in the middle of a tensor. Copy it again.")
    return len(values)


def _chunks(
    path: Path, header: TensorHeader, unsigned: type[np.unsignedinteger[Any]]
) -> Iterator[np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]]:
    num_items = math.prod(header.shape)
    with path.open("rb") as file:
        file.seek(header.begin)
        for first in range(0, num_items, _CHUNK_ITEMS):
            yield np.fromfile(file, dtype=unsigned, count=min(_CHUNK_ITEMS, num_items - first))
