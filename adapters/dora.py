"""What serving a DoRA version needs of its base: a factor and a constant per output, computed once, at publish.

DoRA (https://arxiv.org/abs/2402.09353) in PEFT gives `g (W0 x + s B A x) + bias` with `g = m / |W0 + s B A|`: by row,
its magnitudes over the lengths. An engine has `y = W0 x + bias`, so it computes `g y + (1 - g) bias + g s B A x`.
`dora.safetensors` of a version holds, in float32, g as `<layer>.scale` and, where the base has a bias, `(1 - g) bias`
as `<layer>.shift`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base_weights import BaseWeights, Floats
from adapters.errors import InvalidAdapterError
from adapters.lint.config import scaling_of
from adapters.lint.peft_folder import DORA_FILE, WEIGHTS_FILE, LoraModule, read_adapter_config, read_lora_tensors
from adapters.lint.tensors import TensorHeader, find_larger, read_floats, read_headers, read_metadata
from adapters.lint.values import OVERFLOWS_AT
from adapters.lint.words import examples
from adapters.store.durable import write_file

SCALE, SHIFT = "scale", "shift"

_CHUNK_ROWS = 1024  # rows of a layer that are in float64 at a time
_BASE_DIGEST = "base_digest"


def add_dora(folder: Path, base_folder: Path | None, base_digest: str) -> None:
    """Write `dora.safetensors` into a PEFT folder with DoRA that passed the lint.

    Args:
        base_folder: None: the folder must have it already, as a copy of a version has.

    Raises:
        InvalidAdapterError: A factor is not finite, or overflows the type that it is served in; or the folder's own
            file belongs to another base.
        InvalidBaseError: A layer's weights cannot be read.
    """
    if base_folder is None:
        check_dora(folder, base_digest)
        return
    config, base = read_adapter_config(folder), BaseWeights(base_folder)
    tensors: dict[str, Floats] = {}
    for module in read_lora_tensors(folder).modules:
        scale = dora_scale(folder / WEIGHTS_FILE, module, config, base.read(f"{module.name}.weight"))
        tensors[f"{module.name}.{SCALE}"] = scale
        if (bias := f"{module.name}.bias") in base:
            tensors[f"{module.name}.{SHIFT}"] = (1 - scale) * base.read(bias)
    (folder / DORA_FILE).unlink(missing_ok=True)  # what the source brought is not believed
    write_file(folder / DORA_FILE, _safetensors(tensors, {_BASE_DIGEST: base_digest}))


def check_dora(folder: Path, base_digest: str) -> None:
    """Check that a PEFT folder's own `dora.safetensors` belongs to its layers and to a base.

    Raises:
        InvalidAdapterError: It does not, is missing, or holds NaN or infinity.
    """
    path = folder / DORA_FILE
    found = read_headers(path) if path.is_file() else {}
    num_outputs = {module.name: module.lora_b.shape[0] for module in read_lora_tensors(folder).modules}
    lacking = [name for name in num_outputs if f"{name}.{SCALE}" not in found]
    wrong = [header.name for header in found.values() if not _fits(header, num_outputs)]
    if lacking or wrong or read_metadata(path).get(_BASE_DIGEST) != base_digest:
        raise InvalidAdapterError(
            f"The {DORA_FILE} of {folder.name!r} is missing or made for another base. Publish it with the base that it "
            "was trained on: DoRA's factors are computed from the base's weights."
        )
    if bad := find_larger(path, [(header, math.inf) for header in found.values()]):
        raise InvalidAdapterError(f"The {DORA_FILE} of {folder.name!r} holds NaN or infinity: {examples(list(bad))}.")


def _fits(header: TensorHeader, num_outputs: Mapping[str, int]) -> bool:
    module, _, part = header.name.rpartition(".")
    return part in (SCALE, SHIFT) and header.dtype == "F32" and header.shape == (num_outputs.get(module),)


def dora_scale(weights_file: Path, module: LoraModule, config: dict[str, Any], base: Floats) -> Floats:
    """Magnitude over length for each row of a layer, float32 (out_features,).

    Computed in float64, so that every machine gets the same bytes.

    Args:
        base: The base's weight as stored: (out_features, in_features), transposed with `fan_in_fan_out`.

    Raises:
        InvalidAdapterError: A factor is not finite, or overflows the type that it is served in.
    """
    assert module.magnitude is not None
    lora_a, lora_b, magnitude = (
        read_floats(weights_file, header).astype(np.float64)
        for header in (module.lora_a, module.lora_b, module.magnitude)
    )
    scaling = scaling_of(module.name, config)
    weight = base.T if config.get("fan_in_fan_out") else base
    lengths = np.empty(len(lora_b))
    with np.errstate(all="ignore"):
        for start in range(0, len(lora_b), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            lengths[rows] = np.linalg.norm(weight[rows] + scaling * (lora_b[rows] @ lora_a), axis=1)
        scale = (magnitude / lengths).astype(np.float32)
        largest = np.abs(scale * scaling * np.abs(lora_b).max(axis=1))
    if not np.isfinite(scale).all() or not (largest < OVERFLOWS_AT).all():
        raise InvalidAdapterError(
            f"The DoRA magnitudes of {module.name!r}, divided by the lengths of its rows, are not finite in bfloat16. "
            "Train it again, on this base, with a lower learning rate."
        )
    return scale


def _safetensors(tensors: Mapping[str, Floats], metadata: Mapping[str, str]) -> bytes:
    """A file of them in the order of their names: the same numbers give the same bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in sorted(tensors):
        end = offset + tensors[name].nbytes
        entries[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    parts = [np.ascontiguousarray(tensors[name], "<f4").tobytes() for name in sorted(tensors)]
    return b"".join([len(header).to_bytes(8, "little"), header, *parts])
