"""Pad an adapter to a higher rank without changing its function, to measure the cost of the rank."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from adapters.fingerprint import FINGERPRINT_FILE
from adapters.lint.config import is_soft_prompt
from adapters.lint.peft_folder import CONFIG_FILE, DORA_FILE, MAGNITUDE, WEIGHTS_FILE, read_adapter_config
from loadtest.errors import LoadtestError

_COPIED = (FINGERPRINT_FILE, DORA_FILE, "README.md")


def pad_rank(source: Path, lora_r: int, folder: Path) -> None:
    """Write a PEFT adapter at a higher rank: new rows of A and columns of B are zero, alpha scales in proportion.

    B A and its scaling are unchanged bit for bit if the ratio of the ranks is a power of two (with rsLoRA, of four), so
    the fingerprint stays valid.

    Args:
        folder: The new PEFT folder.

    Raises:
        InvalidAdapterError: `source` has no configuration that can be read.
        LoadtestError: Its rank is higher, or not the same in all modules.
    """
    config = read_adapter_config(source)
    if is_soft_prompt(config):
        raise LoadtestError(f"{source.name!r} is a soft prompt, which has no rank; give a LoRA.")
    rank = config.get("r", 8)
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise LoadtestError(f"{source.name!r} has different ranks for some modules; give an adapter with one rank.")
    if rank > lora_r:
        raise LoadtestError(
            f"{source.name!r} has rank {rank}, which exceeds {lora_r}; give an adapter of a lower rank."
        )
    folder.mkdir(parents=True)
    tensors = {name: _padded(name, tensor, lora_r - rank) for name, tensor in load_file(source / WEIGHTS_FILE).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"r": lora_r, "lora_alpha": _alpha(config, lora_r)}))
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _padded(name: str, tensor: Tensor, num_new: int) -> Tensor:
    """A (R, K) with more rows, B (N, R) with more columns; an embedding's A is (R, V), its B (N, R); DoRA's stays."""
    if name.endswith(MAGNITUDE):
        return tensor
    is_a = name.endswith((".lora_A.weight", ".lora_embedding_A"))
    return pad(tensor, (0, 0, 0, num_new) if is_a else (0, num_new))


def _alpha(config: dict[str, Any], lora_r: int) -> float:
    """The alpha that keeps the scaling at rank `lora_r`."""
    growth = lora_r / config.get("r", 8)
    alpha: float = config.get("lora_alpha", 8) * (math.sqrt(growth) if config.get("use_rslora") else growth)
    return int(alpha) if float(alpha).is_integer() else alpha
