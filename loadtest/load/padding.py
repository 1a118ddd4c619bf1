"""An adapter of a higher rank that is the same function: what a rank costs, without training one."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from adapters.fingerprint import FINGERPRINT_FILE
from adapters.lint.peft_folder import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config
from loadtest.errors import LoadtestError

_COPIED = (FINGERPRINT_FILE, "README.md")


def pad_rank(source: Path, lora_r: int, folder: Path) -> None:
    """Write a PEFT adapter at a higher rank: zeros in the rows of A and columns of B that are new, alpha in proportion.

    B A and its scaling stay what they were to the last bit where the ratio of the ranks is a power of two (with rsLoRA,
    of four), so the fingerprint stays true.

    Args:
        folder: Becomes the new PEFT folder.

    Raises:
        InvalidAdapterError: `source` has no configuration that can be read.
        LoadtestError: Its rank is higher, or not the same in all modules.
    """
    config = read_adapter_config(source)
    rank = config.get("r", 8)
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise LoadtestError(f"{source.name!r} has ranks of its own for some modules; give an adapter of one rank.")
    if rank > lora_r:
        raise LoadtestError(f"{source.name!r} has rank {rank}, which is above {lora_r}; give a smaller adapter.")
    folder.mkdir(parents=True)
    tensors = {name: _padded(name, tensor, lora_r - rank) for name, tensor in load_file(source / WEIGHTS_FILE).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"r": lora_r, "lora_alpha": _alpha(config, lora_r)}))
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _padded(name: str, tensor: Tensor, num_new: int) -> Tensor:
    """A (R, K) with more rows, B (N, R) with more columns; an embedding's A is (R, V), its B (N, R)."""
    is_a = name.endswith((".lora_A.weight", ".lora_embedding_A"))
    return pad(tensor, (0, 0, 0, num_new) if is_a else (0, num_new))


def _alpha(config: dict[str, Any], lora_r: int) -> float:
    """The alpha that scales at rank `lora_r` as the old one did at its own."""
    growth = lora_r / config.get("r", 8)
    alpha: float = config.get("lora_alpha", 8) * (math.sqrt(growth) if config.get("use_rslora") else growth)
    return int(alpha) if float(alpha).is_integer() else alpha
