"""The weights of a prepared base, one tensor at a time; those of bitsandbytes are dequantized to bf16."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.bases import weights_folder
from adapters.lint.tensors import TensorHeader, read_headers
from train.export.tensor_files import DTYPES, TensorPlan, read_tensor

_STATE_4BIT = ".quant_state.bitsandbytes__"
_SCALES_INT8 = "SCB"


class BaseTensors:
    """The tensors of a model folder as a plain model has them."""

    def __init__(self, folder: Path) -> None:
        folder = weights_folder(folder)
        self._headers = {
            header.name: (path, header)
            for path in sorted(folder.glob("*.safetensors"))
            for header in read_headers(path).values()
        }
        self._states = {name.partition(_STATE_4BIT)[0]: name for name in self._headers if _STATE_4BIT in name}
        self._config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())

    @property
    def has_tied_head(self) -> bool:
        """Whether the output head is the input embedding and no file holds it."""
        return bool(self._config.get("tie_word_embeddings")) and "lm_head.weight" not in self._headers

    def plans(self) -> Iterator[TensorPlan]:
        """Name, type and shape of every tensor, in the order of the files."""
        for name, (_, header) in self._headers.items():
            if name in self._states:
                yield TensorPlan(name, torch.bfloat16, tuple(self._state(name)["shape"]))
            elif self._is_int8(name):
                yield TensorPlan(name, torch.bfloat16, header.shape)
            elif not self._is_part(name):
                yield TensorPlan(name, DTYPES[header.dtype], header.shape)

    def read(self, name: str) -> Tensor:
        """One tensor, dequantized if bitsandbytes stored it."""
        if name in self._states:
            return self._dequantized_4bit(name)
        if self._is_int8(name):
            scales = self._raw(_sibling(name, _SCALES_INT8)).to(torch.float32)
            return (self._raw(name).to(torch.float32) * (scales / 127).reshape(-1, 1)).to(torch.bfloat16)
        return self._raw(name)

    def _raw(self, name: str) -> Tensor:
        path, header = self._headers[name]
        with path.open("rb") as file:
            return read_tensor(file, header)

    def _header(self, name: str) -> TensorHeader:
        return self._headers[name][1]

    def _state(self, name: str) -> dict[str, Any]:
        """What bitsandbytes stores of a 4-bit tensor beside its numbers: shape, type, block size."""
        state: dict[str, Any] = json.loads(bytes(self._raw(self._states[name]).tolist()))
        return state

    def _dequantized_4bit(self, name: str) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        parts = {part: self._raw(part) for part in self._headers if part.startswith(f"{name}.")}
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        dequantized: Tensor = dequantize_4bit(self._raw(name), state)
        return dequantized.to(torch.bfloat16)

    def _is_int8(self, name: str) -> bool:
        return self._header(name).dtype == "I8" and _sibling(name, _SCALES_INT8) in self._headers

    def _is_part(self, name: str) -> bool:
        """Whether the tensor belongs to a quantized one."""
        if any(name.startswith(f"{packed}.") for packed in _candidates(name) if packed in self._states):
            return True
        weight = _sibling(name, "weight")
        return name.rpartition(".")[2] in (_SCALES_INT8, "weight_format") and weight in self._headers


def _candidates(name: str) -> Iterator[str]:
    """The names that a tensor's name begins with: `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def _sibling(name: str, last: str) -> str:
    """`model.q_proj.weight` with another last part."""
    return f"{name.rpartition('.')[0]}.{last}"
