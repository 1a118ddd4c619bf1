"""Models that were quantized before they came here: GPTQ, AWQ, compressed-tensors and bitsandbytes.

vLLM serves such a model as it is. Training needs plain weights: they are computed once, by the numbers that vLLM's
kernels multiply with (scales in bf16), and stored beside the quantized ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapters.store.manifest import Quantization
from train.errors import PrepareBaseError

Packing = Literal["gptq", "awq", "pack-quantized", "int-quantized"]

_GROUP_SIZES = (-1, 32, 64, 128)  # vLLM 0.32: MARLIN_SUPPORTED_GROUP_SIZES, asked on a CPU too
_WAY_OUT = "Give the model that it was made from, with `--quantization nf4`"


@dataclass(frozen=True)
class Prequantized:
    """How a model says that it is quantized.

    Attributes:
        packing: How its tensors lie; None where bitsandbytes itself reads them.
        num_bits: Of a weight.
        group_size: Inputs that share a scale; -1: all of an output.
        unserved: Why vLLM on this machine does not serve it; None where it does.
    """

    quantization: Quantization
    packing: Packing | None = None
    num_bits: int = 4
    group_size: int = -1
    is_symmetric: bool = True
    unserved: str | None = None

    def __str__(self) -> str:
        group = "" if self.group_size == -1 else f", groups of {self.group_size}"
        return f"{self.quantization}, {self.num_bits} bits{group}"


def read_prequantized(name: str, config: Mapping[str, Any] | None, *, has_cuda: bool) -> Prequantized | None:
    """What a model's `quantization_config` says; None for a model that is not quantized.

    Raises:
        PrepareBaseError: A format that cannot be trained and served here.
    """
    if not config:
        return None
    method = str(config.get("quant_method", "")).lower()
    if method == "bitsandbytes":
        return _bitsandbytes(name, config)
    readers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}
    if method not in readers:
        raise PrepareBaseError(
            f"Base model {name!r} is quantized as {method or 'an unnamed format'!r}, which cannot be trained here. "
            f"{_WAY_OUT}; GPTQ, AWQ, compressed-tensors and bitsandbytes (nf4, int8) are taken as they are."
        )
    found, problem = readers[method](config, has_cuda)
    if problem:
        raise PrepareBaseError(
            f"Base model {name!r} is quantized as {method}, and {problem}. {_WAY_OUT}, or one of the forms in "
            "docs/training.md."
        )
    return found


def _bitsandbytes(name: str, config: Mapping[str, Any]) -> Prequantized:
    if config.get("load_in_8bit"):
        return Prequantized("int8", num_bits=8)
    if config.get("bnb_4bit_quant_type") != "nf4":
        raise PrepareBaseError(
            f"Base model {name!r} is quantized by bitsandbytes as {config.get('bnb_4bit_quant_type')!r}; nf4 and int8 "
            f"can be trained. {_WAY_OUT}."
        )
    return Prequantized("nf4")


def _gptq(config: Mapping[str, Any], has_cuda: bool) -> tuple[Prequantized, str | None]:
    bits, group = config.get("bits"), config.get("group_size")
    found = Prequantized("gptq", "gptq", _whole(bits), _whole(group), unserved=_bits_problem(bits, has_cuda))
    if lacking := [key for key in ("bits", "group_size", "desc_act", "sym") if key not in config]:
        return found, f"its settings lack {lacking}"
    if bits not in (4, 8):
        return found, f"has {bits} bits, wanted 4 or 8"
    if not config["sym"]:
        return found, "is asymmetric (`sym: false`), which vLLM does not read"
    if config.get("desc_act") and group != -1:
        return found, "orders its groups by activation (`desc_act: true`), which vLLM does not read any more"
    if config.get("dynamic"):
        return found, "has settings by layer (`dynamic`), which cannot be dequantized here"
    return found, _group_problem(group)


def _awq(config: Mapping[str, Any], has_cuda: bool) -> tuple[Prequantized, str | None]:
    bits, group = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
    found = Prequantized("awq", "awq", _whole(bits), _whole(group), is_symmetric=False)
    if bits != 4:
        return found, f"has {bits} bits, wanted 4"
    if str(config.get("version", "gemm")).lower() != "gemm":
        return found, f"is packed as {config.get('version')!r}, wanted 'gemm'"
    if not config.get("zero_point", True):
        return found, "has no zero points (`zero_point: false`)"
    return found, _group_problem(group)


def _compressed_tensors(config: Mapping[str, Any], has_cuda: bool) -> tuple[Prequantized, str | None]:
    groups = [_mapping(group) for group in _mapping(config.get("config_groups")).values()] or [{}]
    weights = [_mapping(group.get("weights")) for group in groups]
    packing = config.get("format") or groups[0].get("format")
    first = weights[0]
    found = Prequantized(
        "compressed-tensors",
        "int-quantized" if packing == "int-quantized" else "pack-quantized",
        _whole(first.get("num_bits")),
        _whole(first.get("group_size")),
        bool(first.get("symmetric", True)),
    )
    if any(each != first for each in weights):
        return found, "has several groups with different settings, which cannot be dequantized here"
    if config.get("kv_cache_scheme") or config.get("transform_config") or config.get("sparsity_config"):
        return found, "has a quantized cache, transforms or sparsity, which training does not know"
    if first.get("type") != "int" or packing not in ("pack-quantized", "int-quantized"):
        return found, f"holds {first.get('type')} weights as {packing!r}; wanted int weights, packed or of 8 bits"
    if packing == "int-quantized":
        return found, _w8a8_problem(first, _mapping(groups[0].get("input_activations")))
    return _packed_problem(found, first, groups[0], has_cuda)


def _w8a8_problem(weights: Mapping[str, Any], activations: Mapping[str, Any]) -> str | None:
    fits = weights.get("num_bits") == 8 and weights.get("symmetric", True)
    fits = fits and weights.get("strategy") in ("channel", "tensor")
    if not fits or activations.get("num_bits") != 8 or activations.get("strategy") != "token":
        return "is not W8A8 with symmetric weights by channel or tensor and dynamic activations by token"
    return None


def _packed_problem(
    found: Prequantized, weights: Mapping[str, Any], group: Mapping[str, Any], has_cuda: bool
) -> tuple[Prequantized, str | None]:
    bits = found.num_bits
    if bits not in (4, 8):
        return found, f"has {bits} bits, wanted 4 or 8"
    if group.get("input_activations"):
        return found, f"rounds activations, too (W{bits}A8); wanted weights alone"
    if weights.get("actorder") in ("group", "dynamic"):
        return found, "orders its groups by activation (`actorder`), which vLLM does not read any more"
    unserved = _bits_problem(bits, has_cuda)
    return Prequantized(found.quantization, found.packing, bits, found.group_size, found.is_symmetric, unserved), None


def _bits_problem(bits: object, has_cuda: bool) -> str | None:
    return None if bits == 4 or has_cuda else f"vLLM has no kernel for weights of {bits} bits on a CPU"


def _group_problem(group: object) -> str | None:
    return None if group in _GROUP_SIZES else f"has groups of {group}, wanted one of {_GROUP_SIZES}"


def _whole(number: object) -> int:
    """-1 for what is no whole number, as for one group."""
    return number if isinstance(number, int) else -1


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def plain_config(config_file: Path) -> str:
    """The text of a `config.json` without its quantization."""
    config: dict[str, Any] = json.loads(config_file.read_bytes())
    config.pop("quantization_config", None)
    config["dtype"] = "bfloat16"
    config.pop("torch_dtype", None)
    return json.dumps(config, indent=2) + "\n"
