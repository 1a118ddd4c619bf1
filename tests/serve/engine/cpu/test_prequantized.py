"""Bases that another program quantized, on a CPU."""

import json
from typing import Any

import pytest

from adapters.errors import InvalidBaseError
from serve.engine.cpu.prequantized import check_kernel
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


@pytest.mark.parametrize("settings", [None, {"quant_method": "bitsandbytes", "load_in_8bit": True}, *CONFIGS.values()])
def test_what_vllm_reads_on_a_cpu_passes(tmp_path, settings):
    check_kernel(write(tmp_path / "near", settings))
