"""DoRA in a PEFT folder: served on linear layers, each with one magnitude per output."""

import pytest
import torch
from safetensors.torch import load_file

from adapters.lint.config import check_adapter_config
from adapters.lint.importable import importable
from adapters.lint.lint import lint_folder
from adapters.lint.peft_folder import read_lora_spec
from tests.peft_folders import CONFIG, HIDDEN, MODULES, RANK, dora_tensors, lora_tensors, write_peft_folder

PREFIX = "base_model.model."
MAGNITUDE = f"{PREFIX}{MODULES[0]}.lora_magnitude_vector"
HEAD = {
    f"{PREFIX}lm_head.lora_A.weight": torch.ones(RANK, HIDDEN),
    f"{PREFIX}lm_head.lora_B.weight": torch.ones(HIDDEN, RANK),
    f"{PREFIX}lm_head.lora_magnitude_vector": torch.ones(HIDDEN),
}


def errors(folder, base_folder=None):
    findings = lint_folder(folder, base_folder=base_folder, max_lora_rank=16)
    return [finding.code for finding in findings if finding.level == "error"]


def test_a_good_folder_can_be_served(tmp_path, base_folder):
    folder = write_peft_folder(tmp_path / "dora", use_dora=True, tensors=dora_tensors())
    assert errors(folder, base_folder) == []
    assert read_lora_spec(folder).use_dora
    assert read_lora_spec(folder).num_modules == len(MODULES)


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        pytest.param(lora_tensors(), "dora-magnitude", id="none"),
        pytest.param(dora_tensors() | {MAGNITUDE: torch.ones(HIDDEN - 1)}, "dora-magnitude", id="another length"),
        pytest.param(dora_tensors() | {MAGNITUDE: torch.ones(1, HIDDEN, 1, 1)}, "dora-magnitude", id="a convolution"),
        pytest.param(dora_tensors() | {MAGNITUDE: torch.full((HIDDEN,), float("nan"))}, "not-finite", id="NaN"),
        pytest.param(dora_tensors() | {MAGNITUDE: torch.ones(HIDDEN, dtype=torch.int8)}, "dtype", id="integers"),
        pytest.param(dora_tensors() | HEAD, "dora-layer", id="the output head"),
    ],
)
def test_bad_magnitudes_are_found(tmp_path, tensors, code):
    assert errors(write_peft_folder(tmp_path / "bad", use_dora=True, tensors=tensors)) == [code]


def test_the_adapters_name_in_tensor_names_is_renamed(tmp_path, base_folder, store):
    whole = {name.replace("_vector", "_vector.weight"): tensor for name, tensor in dora_tensors().items()}
    tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in whole.items()}
    folder = write_peft_folder(tmp_path / "odd", use_dora=True, tensors=tensors)
    assert errors(folder) == ["tensor-names"]
    with importable(folder, base_folder, store.folders, rename=True) as found:
        assert load_file(found.folder / "adapter_model.safetensors").keys() == dora_tensors().keys()


def test_a_magnitude_without_prefix_is_one_all_the_same(tmp_path):
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in dora_tensors().items()}
    assert errors(write_peft_folder(tmp_path / "short", use_dora=True, tensors=tensors)) == []


def test_a_planned_recipe_on_the_head_is_refused():
    planned = CONFIG | {"use_dora": True}
    assert check_adapter_config(planned, max_lora_rank=16) == []
    (finding,) = check_adapter_config(planned | {"target_modules": ["lm_head"]}, max_lora_rank=16)
    assert (finding.code, finding.is_unsupported) == ("dora-layer", True)
