"""The base with linear layers of 8 bits, for a CPU: a step reads half the bytes, and AMX multiplies twice as many.

W8A8: each output's weights are rounded to int8 with a scale of their own, once; each token's activations are when they
come. Symmetric, to the nearest. Embeddings, norms and the output head stay as they are, and LoRA computes in bf16 on
the activations as they were. Written as vLLM reads it: the "int-quantized" format of compressed-tensors 0.17.
"""

import hashlib
import json
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters.bases import read_base
from adapters.errors import InvalidBaseError
from adapters.store.manifest import MANIFEST_FILE

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raise it with every change of code after which the same base is rounded to other bytes."""

_CONFIG_FILE = "config.json"
_LARGEST = 127
_LONGEST_S = 3600.0  # to round a base
_FLOATS = frozenset({torch.bfloat16, torch.float16, torch.float32})
# What vLLM builds anew from the files that are there.
_LEFT_OUT = frozenset({_CONFIG_FILE, MANIFEST_FILE, "model.safetensors.index.json"})
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_QUANTIZATION: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": _INT8 | {"strategy": "token", "dynamic": True},
        }
    },
}


def int8_base(base_folder: Path, kept: Path) -> Path:
    """The folder of a prepared base in int8: made at first use, taken from `kept` later.

    Raises:
        InvalidBaseError: It is quantized already, has no linear layer that could be, or cannot be written.
    """
    folder = kept / f"{base_folder.name}-{_key(base_folder)}"
    if folder.is_dir():
        return folder
    config = json.loads((base_folder / _CONFIG_FILE).read_bytes())
    if "quantization_config" in config:
        raise InvalidBaseError(
            f"Base {base_folder.name!r} is quantized already, so it cannot be served in int8. Set cpu_base: bfloat16."
        )
    logger.info("Rounding %s to int8, once", base_folder.name)
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _sweep(kept)
        made = Path(mkdtemp(prefix=".", dir=kept))
        try:
            _write(base_folder, config, made)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if not folder.is_dir():  # else another server was faster
            raise InvalidBaseError(
                f"Base {base_folder.name!r} cannot be kept in int8 under {str(kept)!r}: {error}"
            ) from error
    return folder


def rounds_activations(base_folder: Path) -> bool:
    """Whether linear layers round activations to int8: other than training does (W8A8), or by what shares the batch.

    bitsandbytes leaves out columns with a large value, wherever in the batch that is.
    """
    config: dict[str, Any] = json.loads((base_folder / _CONFIG_FILE).read_bytes())
    own: dict[str, Any] = config.get("quantization_config") or {}
    return own.get("format") == _QUANTIZATION["format"] or bool(own.get("load_in_8bit"))


def _sweep(kept: Path) -> None:
    """Remove what a process that was killed had begun."""
    for path in kept.glob(".*/"):
        with suppress(FileNotFoundError):  # another server has just finished with it
            if path.stat().st_mtime < time.time() - _LONGEST_S:
                shutil.rmtree(path, ignore_errors=True)


def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (N, K) and float32 scales (N, 1) of a weight (N, K); their product is nearest to it."""
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
    return (weight.float() / scale).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def _key(base_folder: Path) -> str:
    """Of all files of the base, as its manifest lists them, and of the format that they are rounded to."""
    read_base(base_folder)
    manifest = (base_folder / MANIFEST_FILE).read_bytes()
    return hashlib.sha256(f"format {FORMAT_VERSION} ".encode() + manifest).hexdigest()[:16]


def _write(base_folder: Path, config: dict[str, Any], folder: Path) -> None:
    num_rounded = 0
    for path in sorted(base_folder.iterdir()):
        if path.suffix == ".safetensors":
            num_rounded += _round_file(path, folder / path.name)
        elif path.is_file() and path.name not in _LEFT_OUT:
            shutil.copy(path, folder)
    if not num_rounded:
        raise InvalidBaseError(
            f"Base {base_folder.name!r} has no linear layers that could be rounded to int8. Set cpu_base: bfloat16."
        )
    (folder / _CONFIG_FILE).write_text(json.dumps(config | {"quantization_config": _QUANTIZATION}, indent=2))


def _round_file(source: Path, target: Path) -> int:
    """One file of weights; how many of them were rounded."""
    tensors: dict[str, Tensor] = {}
    num_rounded = 0
    with safe_open(source, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            tensor: Tensor = file.get_tensor(name)
            if is_linear(name, tensor):
                tensors[name], tensors[f"{name}_scale"] = round_to_int8(tensor)
                num_rounded += 1
            else:
                tensors[name] = tensor
    save_file(tensors, target, metadata={"format": "pt"})
    return num_rounded


def is_linear(name: str, tensor: Tensor) -> bool:
    """Whether this is the weight of a linear layer in one of the model's blocks."""
    return ".layers." in name and name.endswith(".weight") and tensor.ndim == 2 and tensor.dtype in _FLOATS
