"""Model folders as a hub has them, quantized by other programs: GPTQ, AWQ and compressed-tensors, packed by hand."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
Parts = dict[str, Tensor]
Pack = Callable[[Tensor], tuple[Parts, Tensor]]
"""A weight (N, K) to the tensors of a layer, and the weight that they stand for, in bf16."""

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}


def _compressed(fmt: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": fmt,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _packed(num_bits: int, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": num_bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP}
    return _compressed("pack-quantized", weights)


CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "int4": _packed(4, True),
    "int4-zeros": _packed(4, False),
    "w8a8": _compressed(
        "int-quantized",
        _INT8 | {"strategy": "channel", "dynamic": False},
        _INT8 | {"strategy": "token", "dynamic": True},
    ),
}


def write_quantized(plain: Path, folder: Path, form: str, **settings: Any) -> dict[str, Tensor]:
    """Quantize a plain model's blocks; the weights in bf16 that the written ones stand for, by name."""
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if ".layers." in name and tensor.ndim == 2:
            parts, meant[name] = _PACKERS[form](tensor.float())
            module = name.removesuffix("weight")
            tensors |= {f"{module}{part}": value.contiguous() for part, value in parts.items()}
        else:
            tensors[name] = meant[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = CONFIGS[form] | settings
    (folder / "config.json").write_text(json.dumps(config))
    for path in plain.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
    return meant


def _rounded(weight: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers 0 to 15 (N, K), scales in bf16 and zeros 0 to 15 (N, G), nearest to the weight."""
    groups = weight.reshape(len(weight), -1, GROUP)
    if symmetric:
        scales, zeros = groups.abs().amax(-1) / 7, torch.full(groups.shape[:2], 8.0)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = (high - low) / 15
        zeros = (-low / scales).round()
    scales = scales.bfloat16()
    numbers = (groups / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, 15)
    return numbers.reshape(weight.shape).int(), scales, zeros.int()


def _meant(numbers: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    groups = numbers.reshape(len(numbers), -1, GROUP) - zeros.unsqueeze(-1)
    return (groups.float() * scales.float().unsqueeze(-1)).reshape(numbers.shape).bfloat16()


def _words(numbers: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """int32 (R, C / 8) of numbers 0 to 15 (R, C), the first in the lowest bits."""
    eights = numbers.reshape(len(numbers), -1, 8)[..., list(order)].long()
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _pack_gptq(weight: Tensor) -> tuple[Parts, Tensor]:
    numbers, scales, zeros = _rounded(weight, symmetric=True)
    parts = {
        "qweight": _words(numbers).T,
        "qzeros": _words((zeros - 1).T),
        "scales": scales.T.half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    return parts, _meant(numbers, scales, zeros)


def _pack_awq(weight: Tensor) -> tuple[Parts, Tensor]:
    numbers, scales, zeros = _rounded(weight, symmetric=False)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    parts = {"qweight": _words(numbers.T, order), "qzeros": _words(zeros.T, order), "scales": scales.T.half()}
    return parts, _meant(numbers, scales, zeros)


def _pack_int4(weight: Tensor, symmetric: bool = True) -> tuple[Parts, Tensor]:
    numbers, scales, zeros = _rounded(weight, symmetric)
    parts = {"weight_packed": _words(numbers), "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
    if not symmetric:
        parts["weight_zero_point"] = _words(zeros.T).T
    return parts, _meant(numbers, scales, zeros)


def _pack_w8a8(weight: Tensor) -> tuple[Parts, Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 127
    numbers = (weight / scales).round()
    return {"weight": numbers.to(torch.int8), "weight_scale": scales}, (numbers * scales).bfloat16()


_PACKERS: dict[str, Pack] = {
    "gptq": _pack_gptq,
    "awq": _pack_awq,
    "int4": _pack_int4,
    "int4-zeros": lambda weight: _pack_int4(weight, symmetric=False),
    "w8a8": _pack_w8a8,
}
