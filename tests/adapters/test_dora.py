"""What a published DoRA version holds beside PEFT's files, against PEFT's own arithmetic."""

import shutil

import pytest
import torch
from peft.tuners.lora.dora import DoraLinearLayer
from safetensors.torch import load_file, save_file

from adapters.bases import read_base
from adapters.dora import add_dora, check_dora
from adapters.errors import InvalidAdapterError, InvalidBaseError
from adapters.lint.config import scaling_of
from adapters.lint.peft_folder import DORA_FILE, read_adapter_config
from adapters.reference import Target
from tests.peft_folders import (
    HIDDEN,
    MODULES,
    dora_tensors,
    draft_for,
    write_peft_folder,
)

PREFIX = "base_model.model."
DIGEST = "d" * 64


@pytest.fixture
def base_weights():
    """Random, in bfloat16, as a prepared base has them; one layer has a bias."""
    generator = torch.Generator().manual_seed(7)
    weights = {f"{module}.weight": torch.randn(HIDDEN, HIDDEN, generator=generator).bfloat16() for module in MODULES}
    return weights | {f"{MODULES[0]}.bias": torch.randn(HIDDEN, generator=generator).bfloat16()}


@pytest.fixture
def base(tmp_path, base_weights):
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(base_weights, folder / "model.safetensors")
    return folder


def dora_folder(path, dtype=torch.bfloat16, **changes):
    tensors = {name: tensor.to(dtype) for name, tensor in dora_tensors().items()}
    return write_peft_folder(path, use_dora=True, tensors=tensors, **changes)


def pefts_factors(folder, weights, module):
    """Magnitude over the norm that PEFT's own layer computes, in float32."""
    tensors = load_file(folder / "adapter_model.safetensors")
    lora_a, lora_b, magnitude = (
        tensors[f"{PREFIX}{module}.{part}"].float()
        for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    )
    config = read_adapter_config(folder)
    layer = DoraLinearLayer(fan_in_fan_out=bool(config.get("fan_in_fan_out")))
    weight = weights[f"{module}.weight"].float()
    return magnitude / layer.get_weight_norm(weight, lora_b @ lora_a, scaling_of(module, config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 32}}, {"fan_in_fan_out": True}],
    ids=str,
)
def test_factors_are_pefts_in_float32(tmp_path, base, base_weights, dtype, changes):
    folder = dora_folder(tmp_path / "dora", dtype, **changes)
    add_dora(folder, base, DIGEST)
    found = load_file(folder / DORA_FILE)
    assert {name for name in found if name.endswith(".scale")} == {f"{module}.scale" for module in MODULES}
    for module in MODULES:
        want = pefts_factors(folder, base_weights, module)
        assert (want - 1).abs().max() > 0.1
        torch.testing.assert_close(found[f"{module}.scale"], want, rtol=1e-5, atol=1e-6)


def test_a_constant_is_there_where_the_base_has_a_bias(tmp_path, base, base_weights):
    folder = dora_folder(tmp_path / "dora")
    add_dora(folder, base, DIGEST)
    found = load_file(folder / DORA_FILE)
    assert [name for name in found if name.endswith(".shift")] == [f"{MODULES[0]}.shift"]
    bias = base_weights[f"{MODULES[0]}.bias"].float()
    torch.testing.assert_close(found[f"{MODULES[0]}.shift"], (1 - found[f"{MODULES[0]}.scale"]) * bias)


def test_the_same_folder_and_base_give_the_same_bytes(tmp_path, base):
    folders = [dora_folder(tmp_path / name) for name in "ab"]
    for folder in folders:
        add_dora(folder, base, DIGEST)
    assert (folders[0] / DORA_FILE).read_bytes() == (folders[1] / DORA_FILE).read_bytes()


def test_a_row_of_no_length_is_refused(tmp_path, base_weights):
    tensors = dora_tensors()
    for module in MODULES:
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.zeros_like(tensors[f"{PREFIX}{module}.lora_B.weight"])
    folder = write_peft_folder(tmp_path / "dora", use_dora=True, tensors=tensors)
    zero = tmp_path / "zero"
    zero.mkdir()
    save_file({name: torch.zeros_like(weight) for name, weight in base_weights.items()}, zero / "model.safetensors")
    with pytest.raises(InvalidAdapterError, match=r"DoRA magnitudes of 'model\.layers\.0\.self_attn\.q_proj'"):
        add_dora(folder, zero, DIGEST)
    assert not (folder / DORA_FILE).exists()


def test_weights_of_an_unknown_storage_are_refused(tmp_path, base_weights):
    odd = tmp_path / "gptq"
    odd.mkdir()
    save_file({name: weight.to(torch.int32) for name, weight in base_weights.items()}, odd / "model.safetensors")
    with pytest.raises(InvalidBaseError, match=r"stores 'model\.layers\.0\.self_attn\.q_proj\.weight' as I32"):
        add_dora(dora_folder(tmp_path / "dora"), odd, DIGEST)


def test_publish_adds_the_file_and_lists_it(store, tmp_path, base_folder):
    folder = dora_folder(tmp_path / "dora")
    (folder / DORA_FILE).write_bytes(b"what the source brings is not believed")
    draft = draft_for(folder, base=read_base(base_folder).ref)
    manifest = store.publish(folder, draft, base_folder=base_folder)
    assert DORA_FILE in [file.path for file in manifest.files]
    version = store.folder(Target("medical", 1))
    assert load_file(version / DORA_FILE)[f"{MODULES[1]}.scale"].shape == (HIDDEN,)
    assert manifest.lora.use_dora
    copy = store.publish(version, draft)  # of a version it is taken over
    assert copy.digest == manifest.digest


def test_dora_cannot_be_published_without_its_base(store, tmp_path, base_folder):
    folder = dora_folder(tmp_path / "dora")
    with pytest.raises(InvalidAdapterError, match=f"{DORA_FILE} of .* is missing or made for another base"):
        store.publish(folder, draft_for(folder))
    assert store.names() == []


def test_a_file_of_another_base_is_refused(store, tmp_path, base_folder):
    folder = dora_folder(tmp_path / "dora")
    store.publish(folder, draft_for(folder, base=read_base(base_folder).ref), base_folder=base_folder)
    copy = shutil.copytree(store.folder(Target("medical", 1)), tmp_path / "copy")
    with pytest.raises(InvalidAdapterError, match="made for another base"):
        store.publish(copy, draft_for(copy, name="other"))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("gone.scale", torch.ones(HIDDEN), "missing or made for another base"),
        (f"{MODULES[0]}.shift", torch.ones(1), "missing or made for another base"),
        (f"{MODULES[0]}.scale", torch.ones(HIDDEN, dtype=torch.int32), "missing or made for another base"),
        (f"{MODULES[0]}.scale", torch.full((HIDDEN,), float("nan")), "holds NaN or infinity"),
    ],
)
def test_a_file_that_does_not_fit_its_layers_is_refused(tmp_path, base, name, tensor, message):
    folder = dora_folder(tmp_path / "dora")
    add_dora(folder, base, DIGEST)
    check_dora(folder, DIGEST)
    tensors = load_file(folder / DORA_FILE) | {name: tensor}
    (folder / DORA_FILE).unlink()
    save_file(tensors, folder / DORA_FILE, metadata={"base_digest": DIGEST})
    with pytest.raises(InvalidAdapterError, match=message):
        check_dora(folder, DIGEST)


def test_a_plain_version_has_no_such_file(store, peft_folder):
    assert DORA_FILE not in [file.path for file in store.publish(peft_folder, draft_for(peft_folder)).files]
