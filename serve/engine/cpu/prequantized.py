"""Bases that another program quantized: which of them vLLM (0.32) reads on a CPU."""

import json
from pathlib import Path
from typing import Any

from adapters.errors import InvalidBaseError


def check_kernel(base_folder: Path) -> None:
    """Check that vLLM has a kernel on a CPU; without one its worker ends at each start.

    Raises:
        InvalidBaseError: It has none, as for a base that was prepared on a GPU.
    """
    config: dict[str, Any] = json.loads((base_folder / "config.json").read_bytes())
    own: dict[str, Any] = config.get("quantization_config") or {}
    groups = (own.get("config_groups") or {}).values()
    if own.get("quant_method") == "gptq":
        bits = {own.get("bits")}
    elif own.get("format") == "pack-quantized":
        bits = {(group.get("weights") or {}).get("num_bits") for group in groups}
    else:
        return
    if bits != {4}:
        raise InvalidBaseError(
            f"Base {base_folder.name!r} holds {own['quant_method']} weights of {', '.join(map(str, bits))} bits; on a "
            "CPU vLLM has a kernel for 4 alone. Serve it on a GPU, or prepare the base with `--storage dequantized`."
        )
