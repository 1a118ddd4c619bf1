"""The weights of a prepared base as numbers, one tensor at a time; those of bitsandbytes are dequantized as it does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.errors import InvalidBaseError
from adapters.lint.tensors import FLOAT_DTYPES, read_bytes, read_floats, read_headers

Floats = NDArray[np.float32]

_STATE_4BIT = ".quant_state.bitsandbytes__"


class BaseWeights:
    """The tensors of a base folder by name."""

    def __init__(self, folder: Path) -> None:
        self._name = folder.name
        self._headers = {
            header.name: (path, header)
            for path in sorted(folder.glob("*.safetensors"))
            for header in read_headers(path).values()
        }
        self._states = {name.partition(_STATE_4BIT)[0]: name for name in self._headers if _STATE_4BIT in name}

    def __contains__(self, name: str) -> bool:
        return name in self._headers

    def read(self, name: str) -> Floats:
        """One tensor in float32, with the values that training and serving compute with.

        Raises:
            InvalidBaseError: The base has no such tensor, or stores it in a way that is not read.
        """
        if name not in self:
            raise InvalidBaseError(f"Base {self._name!r} has no tensor {name!r}.")
        path, header = self._headers[name]
        if name in self._states:
            return self._dequantized_4bit(name)
        if header.dtype == "I8" and (scales := f"{name.rpartition('.')[0]}.SCB") in self:
            rows = read_bytes(path, header).view(np.int8).reshape(header.shape)
            return _as_bfloat16(rows * (self.read(scales) / np.float32(127))[:, None])
        if header.dtype not in FLOAT_DTYPES:
            raise InvalidBaseError(
                f"Base {self._name!r} stores {name!r} as {header.dtype}; only BF16, F16, F32 and the types of "
                "bitsandbytes can be read as numbers."
            )
        return read_floats(path, header)

    def _dequantized_4bit(self, name: str) -> Floats:
        state: dict[str, Any] = json.loads(self._bytes(self._states[name]).tobytes())
        scales = self._bytes(f"{name}.absmax")
        if "nested_absmax" in {each.rpartition(".")[2] for each in self._headers if each.startswith(f"{name}.")}:
            outer = np.repeat(self.read(f"{name}.nested_absmax"), state["nested_blocksize"])[: len(scales)]
            absmax = self.read(f"{name}.nested_quant_map")[scales] * outer + np.float32(state["nested_offset"])
        else:
            absmax = self.read(f"{name}.absmax")
        packed = self._bytes(name)
        codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)  # the upper half of a byte comes first
        values = self.read(f"{name}.quant_map")[codes][: int(np.prod(state["shape"]))]
        values *= np.repeat(absmax, state["blocksize"])[: len(values)]
        return _as_bfloat16(values).reshape(state["shape"])

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        path, header = self._headers[name]
        return read_bytes(path, header)


def _as_bfloat16(values: Floats) -> Floats:
    """Rounded to bfloat16, to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF_0000)).view(np.float32)
