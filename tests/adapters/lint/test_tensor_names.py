"""Tensor names of wrappers and hand-written savers: the odd part is named, and a rename gives PEFT's names."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapters.lint.config import LintFinding
from adapters.lint.lint import lint_folder
from adapters.lint.tensor_names import plan_renames, write_renamed
from tests.peft_folders import MODULES, lora_tensors, write_base_folder, write_peft_folder

PREFIX = "base_model.model."
NAMES = sorted(lora_tensors())
EMBEDDING = f"{PREFIX}model.embed_tokens.lora_embedding_A"


def swapped(old: str, new: str) -> Callable[[str], str]:
    return lambda name: name.replace(old, new, 1)


ODD = [
    pytest.param("_orig_mod.{}".format, "'_orig_mod' of torch.compile", id="compiled"),
    pytest.param(swapped("model.layers", "_orig_mod.model.layers"), "'_orig_mod' of torch.compile", id="inside"),
    pytest.param(swapped("self_attn", "_fsdp_wrapped_module.self_attn"), "of FSDP", id="FSDP"),
    pytest.param(
        swapped("self_attn", "_fsdp_wrapped_module._checkpoint_wrapped_module.self_attn"),
        "'_checkpoint_wrapped_module' of activation checkpointing",
        id="FSDP and checkpointing",
    ),
    pytest.param("_forward_module.{}".format, "'_forward_module' of Lightning", id="Fabric"),
    pytest.param("module.{}".format, "'module' before 'base_model.model.'", id="DDP"),
    pytest.param("module.module.{}".format, "'module.module' before", id="DDP twice"),
    pytest.param(swapped(PREFIX, f"{PREFIX}module."), "'module' of DDP or DeepSpeed", id="DDP inside"),
    pytest.param(swapped(PREFIX, f"module.{PREFIX}module._orig_mod."), "'_orig_mod'", id="all at once"),
    pytest.param(f"{PREFIX}{{}}".format, "'base_model.model' before 'base_model.model.'", id="the prefix twice"),
    pytest.param("model.{}".format, "'model' before 'base_model.model.'", id="Lightning"),
    pytest.param(swapped(".weight", ".default.weight"), "the adapter's name 'default'", id="an adapter's name"),
    pytest.param(swapped(".weight", ".my-lora.weight"), "the adapter's name 'my-lora'", id="another one's"),
]
OF_BASE = [
    pytest.param(swapped(f"{PREFIX}model.", PREFIX), "no 'model.' before the layer", id="a part is missing"),
    pytest.param(swapped(PREFIX, f"{PREFIX}transformer."), "'transformer' before", id="a part more"),
    pytest.param(swapped(PREFIX, f"{PREFIX}policy.actor."), "'policy.actor' before", id="two more"),
]


def renamed_folder(path: Path, rename: Callable[[str], str]) -> Path:
    return write_peft_folder(path, tensors={rename(name): tensor for name, tensor in lora_tensors().items()})


def findings(folder: Path, base_folder: Path | None = None) -> list[LintFinding]:
    return lint_folder(folder, base_folder=base_folder, max_lora_rank=16)


@pytest.mark.parametrize(("rename", "reason"), ODD)
def test_an_odd_name_is_refused_with_its_odd_part(tmp_path: Path, rename: Callable[[str], str], reason: str) -> None:
    (finding,) = findings(renamed_folder(tmp_path / "odd", rename))
    assert (finding.level, finding.code) == ("error", "tensor-names")
    assert reason in finding.message
    assert f"{rename(NAMES[0])} must be {NAMES[0]}" in finding.message
    assert "--rename" in finding.fix


@pytest.mark.parametrize(("rename", "reason"), [*ODD, *OF_BASE])
def test_names_are_told_with_the_base_at_hand(
    tmp_path: Path, base_folder: Path, rename: Callable[[str], str], reason: str
) -> None:
    error, info = findings(renamed_folder(tmp_path / "odd", rename), base_folder)
    assert reason in error.message
    assert info.message == "4/4 modules apply to 'tiny'."


@pytest.mark.parametrize(("rename", "reason"), [*ODD, *OF_BASE])
def test_a_rename_gives_pefts_names(rename: Callable[[str], str], reason: str) -> None:
    renames = plan_renames([rename(name) for name in NAMES], set(MODULES))
    assert renames.names == {rename(name): name for name in NAMES}
    assert not renames.collisions


def test_names_of_peft_stay(tmp_path: Path) -> None:
    names = [*NAMES, EMBEDDING, f"{PREFIX}lm_head.base_layer.weight", f"{PREFIX}prompt_embeddings", "spare"]
    assert plan_renames(names, None).changed == {}


@pytest.mark.parametrize("name", [f"{EMBEDDING}.default", f"_orig_mod.{EMBEDDING}", f"{EMBEDDING}.weight"])
def test_an_embeddings_names_are_told_too(name: str) -> None:
    assert plan_renames([name], None).names == {name: EMBEDDING}


def test_a_layer_of_the_base_keeps_an_odd_name() -> None:
    layer = "module.base_model.model.proj"
    name = f"{PREFIX}{layer}.lora_A.weight"
    assert plan_renames([name], {layer}).changed == {}


def test_names_without_the_prefix_are_a_warning(tmp_path: Path, base_folder: Path) -> None:
    """vLLM reads them."""
    warning, _ = findings(renamed_folder(tmp_path / "bare", swapped(PREFIX, "")), base_folder)
    assert (warning.level, warning.code) == ("warning", "tensor-names")
    assert "8 tensor names lack 'base_model.model.'" in warning.message


def test_several_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    tensors = {
        name.replace(".weight", f".{adapter}.weight"): tensor
        for adapter in ("default", "other")
        for name, tensor in lora_tensors().items()
    }
    error = findings(write_peft_folder(tmp_path / "two", tensors=tensors))[0]
    assert (error.level, error.code) == ("error", "tensor-names")
    assert (
        f"Several tensors would have the same name, as if one file held several adapters: {NAMES[0]}" in error.message
    )
    assert "--rename" not in error.fix


def test_an_adapter_of_another_architecture_is_no_matter_of_names(tmp_path: Path) -> None:
    base = write_base_folder(tmp_path / "gpt", modules=("transformer.h.0.attn.c_attn",))
    (finding,) = findings(write_peft_folder(tmp_path / "llama"), base)
    assert finding.code == "no-module-applies"


def test_a_message_on_names_is_short(tmp_path: Path) -> None:
    tensors = {f"{number}{'x' * 5000}.{name}": tensor for number, (name, tensor) in enumerate(lora_tensors().items())}
    (finding,) = findings(write_peft_folder(tmp_path / "long", tensors=tensors))
    assert len(str(finding)) < 1500


@pytest.mark.slow
def test_a_long_name_takes_linear_time() -> None:
    name = "module." * 1_000_000 + NAMES[0]
    assert plan_renames([name], None).names == {name: NAMES[0]}
    assert plan_renames([PREFIX * 100_000 + "x.lora_A.weight"], {"y"}).odd


PARTS = st.sampled_from(["module", "_orig_mod", "base_model", "model", "lora_A", "lora_embedding_B", "weight", "x", ""])


@given(parts=st.lists(PARTS, min_size=1, max_size=8), with_base=st.booleans())
def test_a_rename_is_done_once(parts: list[str], with_base: bool) -> None:
    layers = {"x", "model.x"} if with_base else None
    once = plan_renames([".".join(parts)], layers).names
    twice = plan_renames(list(once.values()), layers)
    assert (twice.changed, twice.odd) == ({}, {})


def test_a_renamed_file_has_the_same_numbers(tmp_path: Path) -> None:
    tensors = lora_tensors() | {"half": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    write_renamed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", {name: f"é.{name}" for name in NAMES})
    found = load_file(tmp_path / "b.safetensors")
    assert set(found) == {*(f"é.{name}" for name in NAMES), "half"}
    assert all(torch.equal(found[f"é.{name}"], tensors[name]) for name in NAMES)
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_configuration_says_nothing_of_names(tmp_path: Path) -> None:
    folder = renamed_folder(tmp_path / "odd", "_orig_mod.{}".format)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 4}))
    assert [finding.code for finding in findings(folder)] == ["tensor-names", "rank-shape"]
