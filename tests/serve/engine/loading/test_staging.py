"""Staged adapters: what the helper process writes is what vLLM's own loader would have packed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.dora import add_dora
from adapters.lint.peft_folder import DORA_FILE
from serve.engine.loading.packing import Form
from serve.engine.loading.staging import LayerShape, Layout, Stager, map_staged, read_staged, write_staged
from serve.kernels.packed import pack_a, pack_b
from tests.peft_folders import HIDDEN, dora_tensors, lora_tensors, write_base_folder, write_peft_folder

pytestmark = pytest.mark.anyio
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
MODULES = (f"{ATTENTION}.q_proj", f"{ATTENTION}.v_proj")
LAYERS = (
    LayerShape(
        f"{ATTENTION}.qkv_proj",
        HIDDEN,
        (HIDDEN, HIDDEN, HIDDEN),
        (f"{ATTENTION}.q_proj", f"{ATTENTION}.k_proj", f"{ATTENTION}.v_proj"),
    ),
    LayerShape(f"{MLP}.down_proj", HIDDEN, (HIDDEN,), (f"{MLP}.down_proj",)),
)
LAYOUT = Layout(LAYERS)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_peft_folder(tmp_path / "adapter", tensors=lora_tensors(MODULES), lora_alpha=32)


@pytest.fixture
def dora(tmp_path: Path) -> Path:
    """As a version: of a base whose first layer has a bias."""
    base = write_base_folder(tmp_path / "base", MODULES)
    save_file({f"{MODULES[0]}.bias": torch.arange(float(HIDDEN))}, base / "bias.safetensors")
    folder = write_peft_folder(tmp_path / "dora", tensors=dora_tensors(MODULES), lora_alpha=32, use_dora=True)
    add_dora(folder, base, "d" * 64)
    return folder


@pytest.fixture(scope="module")
def stager() -> Iterator[Stager]:
    """One for all tests: its process imports torch."""
    stager = Stager(LAYOUT)
    yield stager
    stager.close()


def test_the_weights_are_the_adapters_scaled_and_packed(adapter: Path, tmp_path: Path) -> None:
    assert write_staged(adapter, LAYOUT, tmp_path / "staged")
    staged = read_staged(tmp_path / "staged", [3, 1])
    assert staged is not None
    attention, mlp = staged
    assert mlp is None  # the adapter leaves it alone
    assert attention is not None
    ranks = attention.entries[:, 2].tolist()
    assert ranks == [8, 0, 8]
    tensors, config = (
        load_file(adapter / "adapter_model.safetensors"),
        json.loads((adapter / "adapter_config.json").read_text()),
    )
    (memory,) = attention.memory
    for part, (address_a, address_b, *_) in zip(LAYERS[0].parts, attention.entries.tolist(), strict=True):
        if part not in MODULES:
            continue
        want_a = pack_a(tensors[f"base_model.model.{part}.lora_A.weight"])
        want_b = pack_b(tensors[f"base_model.model.{part}.lora_B.weight"] * (32 / config["r"]))
        for address, want in ((address_a, want_a), (address_b, want_b)):
            assert address % 64 == 0
            start = address - memory.data_ptr()
            assert torch.equal(memory[start : start + 2 * want.numel()].view(torch.bfloat16), want)


@pytest.mark.parametrize("form", ["bfloat16", "float16", "float32"])
def test_for_vllms_own_layers_they_are_matrices(adapter: Path, tmp_path: Path, form: Form) -> None:
    assert write_staged(adapter, Layout(LAYERS, form), tmp_path / "staged")
    mapped = map_staged(tmp_path / "staged")
    assert mapped is not None
    memory, entries = mapped
    tensors = load_file(adapter / "adapter_model.safetensors")
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    assert entries[:, :, 2].tolist() == [[rank, 0, rank], [0, 0, 0]]
    for place, module in ((0, MODULES[0]), (2, MODULES[1])):
        lora_a = tensors[f"base_model.model.{module}.lora_A.weight"]
        lora_b = tensors[f"base_model.model.{module}.lora_B.weight"].float() * (32 / rank)
        for begin, want in zip(entries[0, place].tolist(), (lora_a, lora_b), strict=False):
            matrix = want.to(getattr(torch, form))
            assert torch.equal(memory[begin : begin + matrix.nbytes].view(matrix.dtype).view_as(matrix), matrix)


def test_of_dora_the_factors_are_in_b_and_beside_it(dora: Path, tmp_path: Path) -> None:
    assert write_staged(dora, LAYOUT, tmp_path / "staged")
    staged = read_staged(tmp_path / "staged", [3, 1])
    assert staged is not None
    attention = staged[0]
    assert attention is not None
    assert attention.is_rescaled
    tensors, constants = load_file(dora / "adapter_model.safetensors"), load_file(dora / DORA_FILE)
    rank = json.loads((dora / "adapter_config.json").read_text())["r"]
    (memory,) = attention.memory

    def at(address: int, like: torch.Tensor) -> torch.Tensor:
        start = address - memory.data_ptr()
        return memory[start : start + like.nbytes].view(like.dtype)

    first, untouched, last = attention.entries.tolist()
    for module, entry in ((MODULES[0], first), (MODULES[1], last)):
        scale = constants[f"{module}.scale"]
        want_b = pack_b(tensors[f"base_model.model.{module}.lora_B.weight"] * (32 / rank) * scale[:, None])
        assert torch.equal(at(entry[1], want_b), want_b)
        assert torch.equal(at(entry[3], scale), scale)
    shift = constants[f"{MODULES[0]}.shift"]
    assert torch.equal(at(first[4], shift), shift)
    assert (untouched, last[4]) == ([0] * 5, 0)


def test_dora_without_its_factors_is_never_staged_as_plain_lora(dora: Path, tmp_path: Path) -> None:
    (dora / DORA_FILE).unlink()
    with pytest.raises(FileNotFoundError):
        write_staged(dora, LAYOUT, tmp_path / "staged")


def test_a_file_whose_tensors_begin_at_an_odd_byte_is_packed_alike(adapter: Path, tmp_path: Path) -> None:
    """The format pads its header so that they do not, and asks nobody to."""
    digest = write_staged(adapter, LAYOUT, tmp_path / "even")
    file = adapter / "adapter_model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip(b" ")
    odd = header + b" " * (1 - len(header) % 2)
    file.write_bytes(len(odd).to_bytes(8, "little") + odd + content[8 + length :])
    assert len(odd) % 2 == 1
    assert write_staged(adapter, LAYOUT, tmp_path / "odd") == digest


def test_the_folder_may_go_once_it_is_mapped(adapter: Path, tmp_path: Path) -> None:
    write_staged(adapter, LAYOUT, tmp_path / "staged")
    staged = read_staged(tmp_path / "staged", [3, 1])
    assert staged is not None
    assert staged[0] is not None
    before = staged[0].memory[0].clone()
    for file in (tmp_path / "staged").iterdir():
        file.unlink()
    assert torch.equal(staged[0].memory[0], before)


def test_the_digest_tells_one_adapters_weights_from_anothers(adapter: Path, tmp_path: Path) -> None:
    other = write_peft_folder(tmp_path / "other", tensors=lora_tensors(MODULES), lora_alpha=16)
    digests = [write_staged(folder, LAYOUT, tmp_path / str(n)) for n, folder in enumerate((adapter, adapter, other))]
    assert digests[0] == digests[1] != digests[2]


def test_what_no_layer_takes_is_left_to_the_engine(tmp_path: Path) -> None:
    modules = (*MODULES, "model.layers.0.self_attn.o_proj")
    adapter = write_peft_folder(tmp_path / "adapter", tensors=lora_tensors(modules))
    assert write_staged(adapter, LAYOUT, tmp_path / "staged") is None
    assert not (tmp_path / "staged").exists()


def test_a_folder_that_is_no_staged_one_is_not_mapped(adapter: Path) -> None:
    assert read_staged(adapter, [3, 1]) is None


@pytest.mark.slow
async def test_a_process_of_its_own_stages(stager: Stager, adapter: Path) -> None:
    async with stager.staged(adapter) as staged:
        assert staged is not None
        assert staged.digest == write_staged(adapter, LAYOUT, adapter.parent / "here")
        assert read_staged(staged.folder, [3, 1]) is not None
    assert not staged.folder.exists()


@pytest.mark.slow
async def test_a_process_that_dies_is_started_again(stager: Stager, adapter: Path) -> None:
    async with stager.staged(adapter):
        (process,) = stager._pool._processes.values()
    process.kill()
    process.join()
    async with stager.staged(adapter) as first, stager.staged(adapter) as second:
        assert first is None  # the engine reads this one itself
        assert second is not None
