from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from adapters.bases import list_bases, read_base, verify_base
from adapters.errors import BaseNotFoundError, InvalidBaseError
from adapters.store.manifest import Quantization, Storage
from config.home import Home
from lorikeet import app
from tests.tiny_llama import CHAT_TEMPLATE, write_tiny_llama
from train.base.prepare import default_name, find_source, prepare_base
from train.base.quantize import choose_storage, load_causal_lm
from train.errors import PrepareBaseError

OWN_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
IDS = torch.arange(3, 35).unsqueeze(0)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "Tiny Llama")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "var")


def test_a_prepared_base_is_a_normal_model_folder_with_a_manifest(home: Home, model_folder: Path) -> None:
    manifest = prepare_base(str(model_folder), quantization="none", home=home)
    folder = home.bases / "tiny-llama"
    assert verify_base(folder) == manifest
    assert manifest.storage == "plain"
    assert str(model_folder.parent) not in manifest.model_dump_json()
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == manifest.num_parameters


@pytest.mark.slow
def test_the_dequantized_base_answers_as_bitsandbytes_own_nf4(home: Home, model_folder: Path) -> None:
    prepare_base(str(model_folder), "once", "nf4", "dequantized", home=home)
    prepare_base(str(model_folder), "real", "nf4", "bitsandbytes", home=home)
    with torch.inference_mode():
        once = load_causal_lm(home.bases / "once").eval()(IDS).logits.float()
        real = load_causal_lm(home.bases / "real").eval()(IDS).logits.float()
        plain = load_causal_lm(model_folder).eval()(IDS).logits.float()
    # bf16 keeps 8 bits; quantization itself moves the logits much further than that.
    assert (once - real).abs().max() < 0.02 * real.abs().max()
    assert (once - real).abs().mean() < 0.1 * (once - plain).abs().mean()


@pytest.mark.slow
def test_only_linear_layers_are_quantized(home: Home, model_folder: Path) -> None:
    prepare_base(str(model_folder), "once", "nf4", "dequantized", home=home)
    plain, once = load_causal_lm(model_folder), load_causal_lm(home.bases / "once")
    embeddings = (model.get_input_embeddings().get_parameter("weight") for model in (plain, once))
    assert torch.equal(*embeddings)
    assert not torch.equal(plain.model.layers[0].mlp.up_proj.weight, once.model.layers[0].mlp.up_proj.weight)


@pytest.mark.slow
def test_int8_can_be_dequantized_too(home: Home, model_folder: Path) -> None:
    manifest = prepare_base(str(model_folder), quantization="int8", storage="dequantized", home=home)
    assert (manifest.name, manifest.quantization) == ("tiny-llama-int8", "int8")
    served = load_causal_lm(home.bases / "tiny-llama-int8").state_dict()
    plain = load_causal_lm(model_folder).state_dict()["model.layers.0.mlp.up_proj.weight"].float()
    rounded = served["model.layers.0.mlp.up_proj.weight"]
    assert rounded.dtype == torch.bfloat16
    # bitsandbytes' steps: of each row's largest weight, a 127th; bf16 adds its own rounding.
    steps = plain.abs().amax(1, keepdim=True) / 127
    off = (rounded.float() - plain).abs()
    assert off.max() > 0
    assert bool((off <= 0.51 * steps + plain.abs() * 2**-8).all())


@pytest.mark.slow
def test_the_digest_tells_quantizations_apart(home: Home, model_folder: Path) -> None:
    plain = prepare_base(str(model_folder), quantization="none", home=home)
    assert prepare_base(str(model_folder), quantization="nf4", home=home).digest != plain.digest
    assert [m.name for m in list_bases(home.bases)] == ["tiny-llama", "tiny-llama-nf4"]


def test_a_base_that_is_there_is_used_again(home: Home, model_folder: Path) -> None:
    first = prepare_base(str(model_folder), quantization="none", home=home)
    assert prepare_base(str(model_folder), quantization="none", home=home) == first


def test_a_name_taken_by_another_quantization_is_refused(home: Home, model_folder: Path) -> None:
    prepare_base(str(model_folder), "tiny", "none", home=home)
    with pytest.raises(PrepareBaseError, match=r"'tiny' already exists, .* as none, plain; wanted .* as nf4"):
        prepare_base(str(model_folder), "tiny", "nf4", home=home)


def test_an_unfinished_folder_is_refused_and_force_replaces_it(home: Home, model_folder: Path) -> None:
    (home.bases / "tiny").mkdir(parents=True)
    with pytest.raises(InvalidBaseError, match=r"has no manifest.json.*--force"):
        prepare_base(str(model_folder), "tiny", "none", home=home)
    prepare_base(str(model_folder), "tiny", "none", home=home, force=True)
    assert read_base(home.bases / "tiny").name == "tiny"


def test_a_model_without_a_chat_template_is_refused_without_a_trace(home: Home, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "bare", chat_template=None)
    with pytest.raises(PrepareBaseError, match="--chat-template"):
        prepare_base(str(folder), quantization="none", home=home)
    assert list(home.bases.iterdir()) == []


def test_a_chat_template_can_be_given(home: Home, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "bare", chat_template=None)
    template = tmp_path / "own.jinja"
    template.write_text(OWN_TEMPLATE)
    prepare_base(str(folder), quantization="none", home=home, chat_template=template)
    assert (home.bases / "bare" / "chat_template.jinja").read_text() == OWN_TEMPLATE


def test_a_template_without_a_system_role_is_changed_for_all(home: Home, tmp_path: Path) -> None:
    refusing = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHAT_TEMPLATE
    folder = write_tiny_llama(tmp_path / "strict", refusing)
    manifest = prepare_base(str(folder), quantization="none", home=home)
    assert manifest.template_changes == manifest.ref.template_changes == ("system_in_user",)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    rendered = AutoTokenizer.from_pretrained(home.bases / "strict").apply_chat_template(turns, tokenize=False)
    assert rendered == "<|im_start|>user\nBe brief.\n\nHello<|im_end|>\n"


def test_base_prepare_says_what_it_changed(tmp_path: Path) -> None:
    refusing = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHAT_TEMPLATE
    folder = write_tiny_llama(tmp_path / "strict", refusing)
    words = ["base", "prepare", str(folder), "--quantization", "none", "--home", str(tmp_path / "var")]
    assert "Its chat template was changed (system_in_user)" in CliRunner().invoke(app, words).output


def test_a_server_stops_at_the_templates_end_of_turn(home: Home, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "other", CHAT_TEMPLATE.replace("<|im_end|>", "<|endoftext|>"))
    manifest = prepare_base(str(folder), quantization="none", home=home)
    assert manifest.template_changes == ("end_of_turn",)
    tokenizer = AutoTokenizer.from_pretrained(home.bases / "other")
    assert tokenizer.eos_token == "<|endoftext|>"
    stops = GenerationConfig.from_pretrained(home.bases / "other").eos_token_id
    assert stops == sorted(tokenizer.get_vocab()[token] for token in ("<|endoftext|>", "<|im_end|>"))


def test_a_base_whose_template_cannot_be_trained_is_not_prepared(home: Home, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "odd", "{{ messages | length }}" + CHAT_TEMPLATE)
    with pytest.raises(PrepareBaseError, match="renders the prompt differently when an answer follows"):
        prepare_base(str(folder), quantization="none", home=home)
    assert not (home.bases / "odd").exists()


def test_a_changed_weight_is_found(home: Home, model_folder: Path) -> None:
    prepare_base(str(model_folder), "tiny", "none", home=home)
    path = home.bases / "tiny" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidBaseError, match=r"'model.safetensors' has SHA-256"):
        verify_base(home.bases / "tiny")


def test_a_truncated_file_is_found_without_hashing(home: Home, model_folder: Path) -> None:
    prepare_base(str(model_folder), "tiny", "none", home=home)
    (home.bases / "tiny" / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidBaseError, match=r"'tokenizer.json' has 2 bytes"):
        read_base(home.bases / "tiny")


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseNotFoundError, match="no base 'nowhere'"):
        read_base(tmp_path / "nowhere")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrepareBaseError, match=r"has no config.json"):
        find_source(str(tmp_path))


def test_the_packaged_model_is_found_without_its_program() -> None:
    assert find_source("smollm2-135m").licence == "Apache-2.0"
    assert default_name("smollm2-135m", "nf4") == "smollm2-135m-nf4"


@pytest.mark.parametrize(
    ("quantization", "wanted", "has_cuda", "storage"),
    [
        ("nf4", "auto", False, "dequantized"),
        ("nf4", "auto", True, "bitsandbytes"),
        ("nf4", "bitsandbytes", False, "bitsandbytes"),
        ("none", "auto", True, "plain"),
    ],
)
def test_storage_follows_the_device(
    quantization: Quantization, wanted: Literal["auto", "dequantized", "bitsandbytes"], has_cuda: bool, storage: Storage
) -> None:
    assert choose_storage(quantization, wanted, has_cuda=has_cuda) == storage


@pytest.mark.parametrize("name", ["../outside", "..", "/tmp/outside", ".hidden", "a/b", "two words"])
def test_a_name_that_leads_out_of_the_bases_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    with pytest.raises(PrepareBaseError, match="cannot name a base"):
        prepare_base(str(folder), name, "none", home=Home(tmp_path / "var"), force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
