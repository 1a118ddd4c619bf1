"""Bases that another program quantized, on a CPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import InvalidBaseError
from serve.engine.cpu import prequantized
from serve.engine.cpu.prequantized import check_int8, check_kernel, has_exact_int8
from tests.quantized_models import CONFIGS

EIGHT_BITS = {
    "gptq": CONFIGS["gptq"] | {"bits": 8},
    "int4": CONFIGS["int4"] | {"config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
}


def write(folder, settings: dict[str, Any] | None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings} if settings else {}))
    return folder


@pytest.mark.parametrize("settings", EIGHT_BITS.values(), ids=EIGHT_BITS)
def test_8_packed_bits_are_refused_before_a_start(tmp_path, settings):
    with pytest.raises(InvalidBaseError, match=r"'far' holds .* weights of 8 bits.*--storage dequantized"):
        check_kernel(write(tmp_path / "far", settings))


def on_a_cpu(monkeypatch, *, has_kernels: bool) -> None:
    monkeypatch.setattr(prequantized, "has_packed_kernel", lambda: has_kernels)
    monkeypatch.setattr(prequantized, "has_exact_int8", lambda: has_kernels)


@pytest.mark.parametrize("settings", [None, {"quant_method": "bitsandbytes", "load_in_8bit": True}, *CONFIGS.values()])
def test_what_vllm_reads_on_a_cpu_passes(tmp_path, monkeypatch, settings):
    on_a_cpu(monkeypatch, has_kernels=True)
    check_kernel(write(tmp_path / "near", settings))


@pytest.mark.parametrize("form", CONFIGS)
def test_a_cpu_without_a_right_product_refuses_integer_weights_before_a_start(tmp_path, monkeypatch, form):
    on_a_cpu(monkeypatch, has_kernels=False)
    with pytest.raises(InvalidBaseError, match=r"'far' .* on this CPU.*--storage dequantized"):
        check_kernel(write(tmp_path / "far", CONFIGS[form]))


def test_a_base_is_not_rounded_to_int8_where_products_overflow(monkeypatch):
    on_a_cpu(monkeypatch, has_kernels=False)
    with pytest.raises(InvalidBaseError, match=r"no VNNI.*Set cpu_base: bfloat16"):
        check_int8("near", "Set cpu_base: bfloat16")


def test_products_of_int8_are_right_where_the_cpu_adds_them_in_32_bits():
    """Other CPUs are measured, which a test cannot foretell."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        pytest.skip("this CPU has no VNNI")
    assert has_exact_int8()
