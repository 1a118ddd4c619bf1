"""Staged adapters for vLLM's own layers, which compute on a GPU: what the worker maps is what vLLM would have read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.dora import add_dora
from adapters.lint.peft_folder import DORA_FILE
from serve.engine.loading.staging import LayerShape, Layout, write_staged
from tests.peft_folders import HIDDEN, dora_tensors, lora_tensors, write_base_folder, write_peft_folder

pytestmark = pytest.mark.engine  # imports vLLM, which takes as long as many tests together
ATTENTION, DOWN = "model.layers.0.self_attn", "model.layers.0.mlp.down_proj"
PARTS = tuple(f"{ATTENTION}.{name}" for name in ("q_proj", "k_proj", "v_proj"))
ADAPTED = (PARTS[0], PARTS[2], DOWN)
LAYOUT = Layout(
    (
        LayerShape(f"{ATTENTION}.qkv_proj", HIDDEN, (HIDDEN, HIDDEN, HIDDEN), PARTS),
        LayerShape(f"{ATTENTION}.o_proj", HIDDEN, (HIDDEN,), (f"{ATTENTION}.o_proj",)),
        LayerShape(DOWN, HIDDEN, (HIDDEN,), (DOWN,)),
    ),
    "bfloat16",
)


@pytest.fixture(scope="module")
def mapped() -> Any:
    pytest.importorskip("vllm", reason="vllm is not installed")
    from serve.engine.loading import mapped

    return mapped


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_peft_folder(tmp_path / "adapter", tensors=lora_tensors(ADAPTED), lora_alpha=32)


def manager(max_lora_rank: int = 16) -> Any:
    """What is read of vLLM's own."""
    return SimpleNamespace(lora_config=SimpleNamespace(max_lora_rank=max_lora_rank, lora_dtype=torch.bfloat16))


def read_by_vllm(adapter: Path) -> Any:
    """Every module of it, with the scaling merged."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    expected = {name.rpartition(".")[2] for name in (*PARTS, DOWN)}
    helper = PEFTHelper.from_local_dir(str(adapter), 2048)
    model = LoRAModel.from_local_checkpoint(
        str(adapter), expected, helper, lora_model_id=1, device="cpu", dtype=torch.bfloat16
    )
    return {name: module.optimize() for name, module in model.loras.items()}


def test_the_worker_maps_what_vllm_would_have_read(mapped: Any, adapter: Path, tmp_path: Path) -> None:
    write_staged(adapter, LAYOUT, tmp_path / "staged")
    modules = mapped.MATRICES.read(tmp_path / "staged", LAYOUT, manager())
    want = read_by_vllm(adapter)
    assert set(modules) == {f"{ATTENTION}.qkv_proj", DOWN}
    attention = modules[f"{ATTENTION}.qkv_proj"].optimize()
    assert attention.lora_a[1] is attention.lora_b[1] is None
    pairs = [(attention.lora_a[n], attention.lora_b[n], want[PARTS[n]]) for n in (0, 2)]
    for lora_a, lora_b, expected in (*pairs, (modules[DOWN].lora_a, modules[DOWN].lora_b, want[DOWN])):
        assert torch.equal(lora_a, expected.lora_a)
        assert torch.equal(lora_b, expected.lora_b)


def test_of_dora_a_layer_gets_what_its_slices_are_rescaled_by(mapped: Any, tmp_path: Path) -> None:
    from serve.engine.loading.rescaled import RescaledLora

    folder = write_peft_folder(tmp_path / "dora", tensors=dora_tensors(ADAPTED), use_dora=True)
    add_dora(folder, write_base_folder(tmp_path / "base", ADAPTED), "d" * 64)
    write_staged(folder, LAYOUT, tmp_path / "staged")
    modules = mapped.MATRICES.read(tmp_path / "staged", LAYOUT, manager())
    constants = load_file(folder / DORA_FILE)
    attention, down = modules[f"{ATTENTION}.qkv_proj"].lora_a, modules[DOWN].lora_a
    assert isinstance(attention, RescaledLora)
    assert isinstance(down, RescaledLora)
    found = [attention.rescales[0], attention.rescales[2], down.rescales[0]]
    for rescale, module in zip(found, ADAPTED, strict=True):
        assert rescale is not None
        assert torch.equal(rescale.scale, constants[f"{module}.scale"])
        assert rescale.shift is None
    assert attention.rescales[1] is attention.lora_a[1] is None
    assert isinstance(down.lora_a, torch.Tensor)


def test_a_rank_for_which_the_buffers_are_too_small_is_refused(mapped: Any, adapter: Path, tmp_path: Path) -> None:
    write_staged(adapter, LAYOUT, tmp_path / "staged")
    with pytest.raises(ValueError, match=r"rank \d+ is greater than max_lora_rank 1"):
        mapped.MATRICES.read(tmp_path / "staged", LAYOUT, manager(max_lora_rank=1))


def test_a_folder_that_is_no_staged_one_is_vllms(mapped: Any, adapter: Path) -> None:
    assert mapped.MATRICES.read(adapter, LAYOUT, manager()) is None


def test_adapters_are_staged_for_the_dtype_of_vllms_buffers(mapped: Any) -> None:
    assert mapped.MATRICES.form_of(manager()) == "bfloat16"


@pytest.mark.gpu
def test_on_a_gpu_they_lie_in_pinned_memory(mapped: Any, adapter: Path, tmp_path: Path) -> None:
    write_staged(adapter, LAYOUT, tmp_path / "staged")
    modules = mapped.MATRICES.read(tmp_path / "staged", LAYOUT, manager())
    assert modules[DOWN].lora_a.is_pinned()
    assert modules[DOWN].lora_b.is_pinned()
