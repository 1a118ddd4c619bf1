"""Models that other programs quantized: what training computes with, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from typer.testing import CliRunner

from adapters.bases import read_base, verify_base
from adapters.errors import InvalidBaseError
from adapters.lint.base_modules import read_base_modules
from config.home import Home
from lorikeet import app
from tests.quantized_models import CONFIGS, write_quantized
from tests.tiny_llama import write_tiny_llama
from train.base.prepare import prepare_base
from train.base.prequantized import read_prequantized
from train.base.quantize import load_causal_lm
from train.errors import PrepareBaseError
from train.export.base_tensors import BaseTensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("plain") / "tiny-llama")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "var")


@pytest.mark.parametrize("form", CONFIGS)
def test_training_computes_with_the_weights_that_are_served(plain: Path, home: Home, tmp_path: Path, form: str) -> None:
    meant = write_quantized(plain, tmp_path / form, form)
    manifest = prepare_base(str(tmp_path / form), "tiny", home=home)
    folder = home.bases / "tiny"
    assert manifest.storage == "prequantized"
    assert manifest.quantization == CONFIGS[form]["quant_method"]
    served = (folder / "model.safetensors").read_bytes()
    assert served == (tmp_path / form / "model.safetensors").read_bytes()
    trained = load_causal_lm(folder).state_dict()
    assert all(torch.equal(trained[name], weight) for name, weight in meant.items())
    tensors = BaseTensors(folder)  # what exports read
    assert all(torch.equal(tensors.read(name), weight) for name, weight in meant.items())
    assert read_base_modules(folder)["model.layers.0.mlp.up_proj"] == (128, 64)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("form", ["int4", "int4-zeros", "w8a8"])
def test_compressed_tensors_itself_dequantizes_likewise(plain: Path, tmp_path: Path, form: str) -> None:
    meant = write_quantized(plain, tmp_path / form, form)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / form, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=torch.bfloat16
    )
    name = "model.layers.0.mlp.up_proj.weight"
    step = meant[name].float().abs().max() * 2**-8  # half a step of bf16
    assert (model.state_dict()[name].float() - meant[name].float()).abs().max() <= step


def test_the_digest_covers_the_served_and_the_trained_weights(plain: Path, home: Home, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "gptq", "gptq")
    prepare_base(str(tmp_path / "gptq"), "tiny", home=home)
    folder = home.bases / "tiny"
    assert {"model.safetensors", "dequantized/model.safetensors"} <= {file.path for file in read_base(folder).files}
    path = folder / "dequantized" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidBaseError, match=r"'dequantized/model.safetensors' has SHA-256"):
        verify_base(folder)


def test_it_can_be_served_dequantized_too(plain: Path, home: Home, tmp_path: Path) -> None:
    meant = write_quantized(plain, tmp_path / "awq", "awq")
    manifest = prepare_base(str(tmp_path / "awq"), "tiny", storage="dequantized", home=home)
    assert (manifest.quantization, manifest.storage) == ("awq", "dequantized")
    assert not (home.bases / "tiny" / "dequantized").exists()
    state = AutoModelForCausalLM.from_pretrained(home.bases / "tiny").state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in meant.items())


def test_bitsandbytes_models_are_taken_as_they_are(plain: Path, home: Home, tmp_path: Path) -> None:
    prepare_base(str(plain), "made", "nf4", "bitsandbytes", home=home)
    made = tmp_path / "hub" / "tiny-bnb-4bit"
    made.parent.mkdir()
    (home.bases / "made").rename(made)
    (made / "manifest.json").unlink()
    kept = prepare_base(str(made), "kept", storage="bitsandbytes", home=home)
    assert (kept.quantization, kept.storage) == ("nf4", "bitsandbytes")
    assert (home.bases / "kept" / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert prepare_base(str(made), "plain", storage="dequantized", home=home).storage == "dequantized"


@pytest.mark.parametrize(
    ("form", "settings", "problem"),
    [
        ("gptq", {"sym": False}, "asymmetric"),
        ("gptq", {"desc_act": True}, "`desc_act: true`"),
        ("gptq", {"bits": 3}, "has 3 bits, wanted 4 or 8"),
        ("gptq", {"group_size": 48}, r"has groups of 48, wanted one of \(-1, 32, 64, 128\)"),
        ("gptq", {"dynamic": {"+:.*": {"bits": 8}}}, "`dynamic`"),
        ("gptq", {"bits": "four"}, "has four bits"),
        ("int4", {"config_groups": ["Linear"]}, "holds None weights"),
        ("gptq", {"quant_method": "hqq"}, "'hqq'.*`--quantization nf4`"),
        ("gptq", {"quant_method": "fp8"}, "'fp8'"),
        ("awq", {"version": "gemv"}, "packed as 'gemv'"),
        ("awq", {"zero_point": False}, "no zero points"),
        ("int4", {"format": "float-quantized"}, "int weights as 'float-quantized'"),
        ("int4", {"kv_cache_scheme": {"num_bits": 8}}, "quantized cache"),
        ("w8a8", {"config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}}, "not W8A8"),
    ],
)
def test_a_form_that_is_not_served_is_refused_in_one_line(
    plain: Path, home: Home, tmp_path: Path, form: str, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PrepareBaseError, match=f"'tiny' is quantized as .*{problem}") as refused:
        read_prequantized("tiny", CONFIGS[form] | settings, has_cuda=False)
    assert "Give the model that it was made from" in str(refused.value)


def test_gptq_settings_that_vllm_asks_for_must_be_there() -> None:
    with pytest.raises(PrepareBaseError, match=r"its settings lack \['desc_act', 'sym'\]"):
        read_prequantized("tiny", {"quant_method": "gptq", "bits": 4, "group_size": 32}, has_cuda=False)


def test_base_prepare_refuses_without_a_trace(plain: Path, home: Home, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "odd", "gptq", quant_method="quark")
    result = CliRunner().invoke(app, ["base", "prepare", str(tmp_path / "odd"), "--home", str(home.root)])
    assert result.exit_code == 1
    assert "'odd' is quantized as 'quark'" in " ".join(result.stderr.split())
    assert not home.bases.exists()


def test_another_quantization_than_its_own_is_refused(plain: Path, home: Home, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "gptq", "gptq")
    with pytest.raises(PrepareBaseError, match=r"quantized already \(gptq, 4 bits, groups of 32\), wanted int8"):
        prepare_base(str(tmp_path / "gptq"), quantization="int8", home=home)
    with pytest.raises(PrepareBaseError, match=r"holds gptq's own tensors, not bitsandbytes'"):
        prepare_base(str(tmp_path / "gptq"), storage="bitsandbytes", home=home)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a kernel")
def test_8_bits_without_a_kernel_can_be_dequantized(home: Home, plain: Path, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "gptq", "gptq")
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())
    config["quantization_config"]["bits"] = 8
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrepareBaseError, match=r"no kernel for weights of 8 bits on a CPU.*--storage dequantized"):
        prepare_base(str(tmp_path / "gptq"), home=home)


def test_settings_beside_the_config_are_found(plain: Path, home: Home, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "old", "gptq")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    settings = config.pop("quantization_config")
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    (tmp_path / "old" / "quantize_config.json").write_text(json.dumps(settings))
    with pytest.raises(PrepareBaseError, match=r"has a quantize_config.json.*random weights"):
        prepare_base(str(tmp_path / "old"), home=home)


def _cut_in_half(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name][: len(tensors[name]) // 2].contiguous()


@pytest.mark.parametrize(
    ("form", "part", "problem"),
    [
        ("gptq", "scales", r"its scales are \(\d+, 1\), wanted"),
        ("awq", "scales", r"its scales are"),
        ("int4", "weight_scale", r"its scales are"),
        ("int4", "weight_packed", r"."),
        ("int4", "weight_shape", r"it has 1 sizes, wanted outputs and inputs"),
        ("int4-zeros", "weight_zero_point", r"."),
        ("w8a8", "weight_scale", r"."),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(
    plain: Path, home: Home, tmp_path: Path, form: str, part: str, problem: str
) -> None:
    write_quantized(plain, tmp_path / form, form)
    file = tmp_path / form / "model.safetensors"
    tensors = load_file(file)
    _cut_in_half(tensors, f"model.layers.0.mlp.up_proj.{part}")
    save_file(tensors, file, metadata={"format": "pt"})
    message = rf"its layer 'model.layers.0.mlp.up_proj' do not fit together: {problem}"
    with pytest.raises(PrepareBaseError, match=message):
        prepare_base(str(tmp_path / form), home=home)
    assert not list(home.bases.glob("*"))


def test_groups_of_another_size_than_the_config_says_are_refused(plain: Path, home: Home, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "gptq", "gptq", group_size=128)
    with pytest.raises(
        PrepareBaseError, match=r"do not fit together: its scales are .*, wanted|no multiple of the groups' 128"
    ):
        prepare_base(str(tmp_path / "gptq"), home=home)


def test_a_type_that_training_has_not_is_named(plain: Path, home: Home, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "gptq", "gptq")
    file = tmp_path / "gptq" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(PrepareBaseError, match=r"'model.norm.weight' is stored as F8_E4M3, wanted one of"):
        prepare_base(str(tmp_path / "gptq"), home=home)


@pytest.mark.parametrize(
    ("form", "tensor", "value"),
    [
        ("gptq", "scales", float("nan")),
        ("gptq", "scales", float("inf")),
        ("awq", "scales", float("nan")),
        ("w8a8", "weight_scale", float("nan")),
    ],
)
def test_a_scale_that_is_no_number_is_refused(
    plain: Path, home: Home, tmp_path: Path, form: str, tensor: str, value: float
) -> None:
    write_quantized(plain, tmp_path / form, form)
    file = tmp_path / form / "model.safetensors"
    tensors = load_file(file)
    tensors[f"model.layers.1.mlp.up_proj.{tensor}"].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        PrepareBaseError, match=r"'model.layers.1.mlp.up_proj.weight' that are NaN or infinite"
    ) as found:
        prepare_base(str(tmp_path / form), home=home)
    assert "\n" not in str(found.value)
    assert not list(home.bases.glob("*"))


def test_quantization_settings_that_are_a_text_are_one_line(plain: Path, home: Home, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "text", "gptq")
    config = json.loads((tmp_path / "text" / "config.json").read_text()) | {"quantization_config": "gptq"}
    (tmp_path / "text" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrepareBaseError, match=r"Cannot load base model 'text'"):
        prepare_base(str(tmp_path / "text"), home=home)
