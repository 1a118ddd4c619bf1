"""Many adapters from one: linked copies, and copies of a higher rank that are the same function."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.fingerprint import FINGERPRINT_FILE
from adapters.lint.config import scaling_of
from adapters.lint.peft_folder import (
    CONFIG_FILE,
    DORA_FILE,
    MAGNITUDE,
    WEIGHTS_FILE,
    read_adapter_config,
    read_lora_spec,
)
from adapters.reference import Target
from adapters.store.manifest import RequestDefaults
from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.bench.copies import copy_adapter
from loadtest.errors import LoadtestError
from loadtest.load.padding import pad_rank
from tests.peft_folders import HIDDEN, MODULES, RANK, dora_tensors, draft_for, lora_tensors, write_peft_folder


@pytest.fixture
def home(tmp_path: Path, peft_folder: Path) -> Home:
    home = Home(tmp_path / "home")
    store = AdapterStore(home.adapters)
    store.promote("medical", store.publish(peft_folder, draft_for(peft_folder)).version)
    return home


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each layer's weights, (N, K), in float64."""
    tensors, config = load_file(folder / WEIGHTS_FILE), read_adapter_config(folder)
    parts = {module: f"base_model.model.{module}" for module in MODULES}
    return {
        module: scaling_of(module, config)
        * (tensors[f"{part}.lora_B.weight"].double() @ tensors[f"{part}.lora_A.weight"].double())
        for module, part in parts.items()
    }


def test_copies_are_whole_versions_with_a_history_of_their_own(home: Home, tmp_path: Path) -> None:
    copies, names = copy_adapter(home, "medical", 3, tmp_path / "copies")
    store = AdapterStore(copies.adapters)
    assert names == ("cliff-000", "cliff-001", "cliff-002")
    assert store.names() == list(names)
    assert [store.verify(store.resolve(name)).name for name in names] == list(names)
    assert [[event.kind for event in store.history(name)] for name in names] == [["published", "promoted"]] * 3


def test_copies_fill_nothing_in(tmp_path: Path, peft_folder: Path) -> None:
    home = Home(tmp_path / "home")
    store = AdapterStore(home.adapters)
    draft = draft_for(peft_folder, defaults=RequestDefaults(system="Name the chapter.", max_tokens=8))
    store.promote("medical", store.publish(peft_folder, draft).version)
    copies, names = copy_adapter(home, "medical", 1, tmp_path / "copies")
    assert AdapterStore(copies.adapters).manifest(Target(names[0], 1)).defaults is None


def test_a_copy_takes_no_room(home: Home, tmp_path: Path) -> None:
    copies, names = copy_adapter(home, "medical", 3, tmp_path / "copies")
    store = AdapterStore(copies.adapters)
    weights = [store.folder(Target(name, 1)) / WEIGHTS_FILE for name in names]
    assert len({path.stat().st_ino for path in weights}) == 1
    original = AdapterStore(home.adapters).folder(Target("medical", 1)) / WEIGHTS_FILE
    assert weights[0].stat().st_ino != original.stat().st_ino


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True, "lora_alpha": 8}])
@pytest.mark.parametrize("rank", [RANK, 8, 128])
def test_a_higher_rank_is_the_same_function_to_the_last_bit(tmp_path: Path, changes: dict[str, Any], rank: int) -> None:
    source = write_peft_folder(tmp_path / "source", **changes)
    pad_rank(source, rank, tmp_path / "padded")
    padded, original = deltas(tmp_path / "padded"), deltas(source)
    assert all(torch.equal(padded[module], original[module]) for module in MODULES)
    assert read_lora_spec(tmp_path / "padded").lora_r == rank


def test_padding_keeps_the_type_and_the_fingerprint(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in lora_tensors().items()}
    source = write_peft_folder(tmp_path / "source", tensors=tensors)
    (source / FINGERPRINT_FILE).write_text("{}")
    pad_rank(source, 16, tmp_path / "padded")
    padded = load_file(tmp_path / "padded" / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in padded.values()} == {torch.bfloat16}
    assert {tensor.shape for tensor in padded.values()} == {(16, HIDDEN), (HIDDEN, 16)}
    assert (tmp_path / "padded" / FINGERPRINT_FILE).read_text() == "{}"
    assert json.loads((tmp_path / "padded" / CONFIG_FILE).read_text())["lora_alpha"] == 32


def test_padded_dora_keeps_its_magnitudes_and_factors(tmp_path: Path) -> None:
    source = write_peft_folder(tmp_path / "source", use_dora=True, tensors=dora_tensors())
    (source / DORA_FILE).write_bytes(b"factors")
    pad_rank(source, 16, tmp_path / "padded")
    padded, original = (load_file(folder / WEIGHTS_FILE) for folder in (tmp_path / "padded", source))
    names = [name for name in original if name.endswith(MAGNITUDE)]
    assert len(names) == len(MODULES)
    assert all(torch.equal(padded[name], original[name]) for name in names)
    assert (tmp_path / "padded" / DORA_FILE).read_bytes() == b"factors"


def test_copies_of_a_higher_rank_can_be_published(home: Home, tmp_path: Path) -> None:
    copies, names = copy_adapter(home, "medical", 2, tmp_path / "copies", lora_r=128)
    store = AdapterStore(copies.adapters)
    assert [store.verify(store.resolve(name)).lora.lora_r for name in names] == [128, 128]
    assert store.names() == list(names)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"r": 32}, "has rank 32, which exceeds 16"),
        ({"rank_pattern": {"q_proj": 4}}, "different ranks for some modules"),
    ],
)
def test_an_adapter_that_cannot_be_padded_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    source = write_peft_folder(tmp_path / "source", **changes)
    with pytest.raises(LoadtestError, match=expected):
        pad_rank(source, 16, tmp_path / "padded")
    assert not (tmp_path / "padded").exists()
