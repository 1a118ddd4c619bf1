"""The base in int8: what is rounded, what stays, and that it is made once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adapters.errors import InvalidBaseError
from config.home import Home
from serve.engine.cpu.int8 import int8_base, is_linear, round_to_int8, rounds_activations
from tests.examples import at_most
from tests.quantized_models import CONFIGS
from tests.tiny_llama import prepare_tiny_base, write_tiny_llama


@pytest.fixture
def base(tmp_path: Path) -> Path:
    home = Home(tmp_path / "home")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    return home.bases / "tiny"


@at_most(50)
@given(
    st.integers(1, 8),
    st.integers(1, 40),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.floats(1e-30, 1e30),
    st.integers(0, 1000),
)
def test_a_weight_is_rounded_to_the_nearest_of_255_steps(
    rows: int, columns: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    weight[0] = 0
    rounded, scale = round_to_int8(weight)
    assert (rounded.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (rows, 1))
    assert rounded.abs().max() <= 127
    error = (rounded.double() * scale.double() - weight.double()).abs()
    assert (error <= 0.5001 * scale.double()).all()
    assert (rounded[1:].abs().amax(dim=1) == 127).all()  # no range is wasted


@pytest.mark.slow
def test_linear_layers_are_rounded_and_all_else_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    folder = int8_base(base, tmp_path / "int8")
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    linear = {name for name, tensor in before.items() if is_linear(name, tensor)}
    assert len(linear) == 2 * 7  # two blocks of a Llama
    assert set(after) == set(before) | {f"{name}_scale" for name in linear}
    for name, tensor in before.items():
        if name in linear:
            restored = after[name].float() * after[f"{name}_scale"]
            assert (restored - tensor.float()).abs().max() < 0.01 * tensor.float().abs().max()
        else:
            assert torch.equal(after[name], tensor)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    del config["quantization_config"]
    assert config == json.loads((base / "config.json").read_text())
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not (folder / "manifest.json").exists()


@pytest.mark.slow
def test_it_is_made_once_for_a_base(base: Path, tmp_path: Path) -> None:
    kept = tmp_path / "int8"
    first = int8_base(base, kept)
    made_at = (first / "model.safetensors").stat().st_mtime_ns
    assert int8_base(base, kept) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made_at
    manifest = json.loads((base / "manifest.json").read_text())
    (base / "manifest.json").write_text(json.dumps(manifest | {"digest": "f" * 64}))
    assert int8_base(base, kept) != first
    assert len(list(kept.iterdir())) == 2  # and nothing half-written


def leave_out(base: Path, name: str) -> None:
    """The manifest no longer speaks of this file."""
    manifest = json.loads((base / "manifest.json").read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != name]
    (base / "manifest.json").write_text(json.dumps(manifest))


def test_a_base_that_is_quantized_already_is_refused(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    leave_out(base, "config.json")
    with pytest.raises(InvalidBaseError, match=r"'tiny' is quantized already.*Set cpu_base: bfloat16"):
        int8_base(base, tmp_path / "int8")


def test_a_base_without_linear_layers_is_refused_and_nothing_is_left(base: Path, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in load_file(base / "model.safetensors").items() if ".layers." not in name}
    save_file(tensors, base / "model.safetensors")
    leave_out(base, "model.safetensors")
    with pytest.raises(InvalidBaseError, match="no linear layers"):
        int8_base(base, tmp_path / "int8")
    assert list((tmp_path / "int8").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "is_rounded"),
    [
        (None, False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, False),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, True),
        (CONFIGS["int4"], False),
        (CONFIGS["w8a8"], True),
    ],
)
def test_a_base_that_rounds_activations_is_known(base: Path, settings: dict[str, Any] | None, is_rounded: bool) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | ({"quantization_config": settings} if settings else {})))
    assert rounds_activations(base) == is_rounded
