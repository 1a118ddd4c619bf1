"""Bases with integer weights: which of them vLLM (0.32) serves on this CPU, by what it has and what it computes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from adapters.errors import InvalidBaseError

_OUT, _IN, _LARGEST = 32, 64, 127


def check_kernel(base_folder: Path) -> None:
    """Check that vLLM has a kernel for the base's weights on this CPU, and that its products are right.

    Without a kernel its worker ends at each start.

    Raises:
        InvalidBaseError: It has none, as for a base that was prepared on a GPU or another CPU.
    """
    config: dict[str, Any] = json.loads((base_folder / "config.json").read_bytes())
    own: dict[str, Any] = config.get("quantization_config") or {}
    method, packing = own.get("quant_method"), own.get("format")
    if packing == "int-quantized":
        check_int8(base_folder.name, "Prepare the base with `--storage dequantized`")
    elif method in ("gptq", "awq") or packing == "pack-quantized":
        _check_packed(base_folder.name, own)


def check_int8(name: str, way_out: str) -> None:
    """Check that this CPU's products of 8-bit integers are right.

    Args:
        name: The base's, for the message.
        way_out: What to do instead; the message ends with it.

    Raises:
        InvalidBaseError: They are not.
    """
    if not has_exact_int8():
        raise InvalidBaseError(
            f"Base {name!r} would be served in int8, and on this CPU, which has no VNNI instructions, oneDNN's "
            f"products of 8-bit integers overflow: its answers would be wrong. {way_out}, or take another machine."
        )


@cache
def has_exact_int8() -> bool:
    """Whether vLLM's int8 product (oneDNN) is right, measured with the largest sums.

    Without VNNI, AVX2 and AVX-512 add two products in 16 bits, which saturate.
    """
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    scales = torch.ones(_OUT, 1)  # the handler only points to them
    weight = torch.full((_OUT, _IN), _LARGEST, dtype=torch.int8)
    handler = ops.create_onednn_scaled_mm(weight.t(), scales, torch.float32, True, False, _IN)
    rows, of_rows, _ = ops.onednn_scaled_int8_quant(torch.ones(1, _IN), None, None, True)
    product = torch.empty(1, _OUT)
    ops.onednn_scaled_mm(handler, rows, product, of_rows, None, None, None)
    return torch.allclose(product, torch.full_like(product, _IN * _LARGEST), rtol=0.01)


@cache
def has_packed_kernel() -> bool:
    """Whether vLLM's build for this CPU has a product with packed 4-bit weights; that for AVX2 has none."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def _check_packed(name: str, own: dict[str, Any]) -> None:
    way_out = "Serve it on a GPU, or prepare the base with `--storage dequantized`."
    groups = (own.get("config_groups") or {}).values()
    of_groups = {(group.get("weights") or {}).get("num_bits") for group in groups}
    bits = of_groups or {own.get("bits", own.get("w_bit"))}
    if bits != {4}:
        raise InvalidBaseError(
            f"Base {name!r} holds {own['quant_method']} weights of {', '.join(map(str, bits))} bits; on a CPU vLLM has "
            f"a kernel for 4 alone. {way_out}"
        )
    if not has_packed_kernel():
        raise InvalidBaseError(
            f"Base {name!r} holds packed {own['quant_method']} weights, and vLLM has no kernel for them on this CPU, "
            f"which has no AVX-512. {way_out}"
        )
