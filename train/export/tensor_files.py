"""Read and write safetensors one tensor at a time, so that a model larger than memory can be exported."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.lint.tensors import TensorHeader

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5 * 10**9
"""Weights beyond this size are written as several files with an index, as transformers does."""

INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorPlan:
    """Name, type and shape of a tensor that is written later."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def read_tensor(file: BufferedReader, header: TensorHeader) -> Tensor:
    """One tensor of an open safetensors file, copied into memory."""
    file.seek(header.begin)
    content = bytearray(file.read(header.end - header.begin))
    dtype = DTYPES[header.dtype]
    if not content:
        return torch.empty(header.shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(header.shape)


def write_sharded(
    folder: Path, plans: Sequence[TensorPlan], tensors: Iterable[Tensor], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `model.safetensors`, or shards of at most `shard_bytes` with an index.

    Args:
        tensors: In the order of `plans`; taken one at a time.
    """
    shards = _shards(plans, shard_bytes)
    names = [_shard_name(number, len(shards)) for number in range(len(shards))]
    source = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, source)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(plan.size_bytes for plan in plans)},
            "weight_map": {p.name: name for name, shard in zip(names, shards, strict=True) for p in shard},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def to_bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's bytes in row order, without a copy if it is contiguous."""
    array: np.ndarray[Any, Any] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return array


def _shards(plans: Sequence[TensorPlan], shard_bytes: int) -> list[list[TensorPlan]]:
    shards: list[list[TensorPlan]] = [[]]
    size_bytes = 0
    for plan in plans:
        if shards[-1] and size_bytes + plan.size_bytes > shard_bytes:
            shards.append([])
            size_bytes = 0
        shards[-1].append(plan)
        size_bytes += plan.size_bytes
    return shards


def _shard_name(number: int, num_shards: int) -> str:
    return "model.safetensors" if num_shards == 1 else f"model-{number + 1:05}-of-{num_shards:05}.safetensors"


def _write_file(path: Path, plans: Sequence[TensorPlan], source: Iterable[Tensor]) -> None:
    header = _header(plans)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for plan, tensor in zip(plans, source, strict=False):  # the rest of `source` is for the next shards
            assert (tensor.dtype, tuple(tensor.shape)) == (plan.dtype, plan.shape), plan.name
            to_bytes(tensor).tofile(file)


def _header(plans: Sequence[TensorPlan]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for plan in plans:
        end = begin + plan.size_bytes
        entries[plan.name] = {"dtype": _NAMES[plan.dtype], "shape": plan.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)
