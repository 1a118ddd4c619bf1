import json

import numpy as np
import pytest
import torch
from gguf import GGUFReader, Keys
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.exported import NUM_TOKENS, PRE_TOKENIZER, adapted, publish, random_adapter, write_bpe_model
from tests.llama_cpp import llama_cpp  # noqa: F401 - a fixture
from tests.tiny_architectures import write_tiny_model
from tests.tiny_llama import prepare_tiny_base
from train.export.gguf_vocabulary import read_vocabulary

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")]


@pytest.fixture
def exported(lorikeet, tmp_path):
    def run(reference: str = "colours@1"):
        result = lorikeet("export", "gguf", reference, "--output", tmp_path / "gguf", "--force")
        assert (result.exit_code, result.exception) == (0, None), result.stderr
        return tmp_path / "gguf"

    return run


def fields_of(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


def test_the_adapter_has_the_layout_of_llama_cpp(exported):
    reader = GGUFReader(exported() / "adapter.gguf")
    fields = fields_of(reader)
    assert (fields["general.type"], fields["general.architecture"]) == ("adapter", "llama")
    assert (fields[Keys.Adapter.TYPE], fields[Keys.Adapter.LORA_ALPHA]) == ("lora", 1.0)
    shapes = {tensor.name: tensor.data.shape for tensor in reader.tensors}
    assert shapes["blk.0.attn_q.weight.lora_a"] == (4, 64)
    assert shapes["blk.0.attn_v.weight.lora_b"] == (32, 4)
    assert len(shapes) == 12


@pytest.mark.parametrize(
    ("options", "scaling"),
    [({}, 2), ({"use_rslora": True}, 4), ({"alpha_pattern": {"v_proj": 12}, "rank_pattern": {"v_proj": 2}}, 6)],
)
def test_alpha_over_rank_is_the_scaling_of_peft(home, tmp_path, exported, options, scaling):
    folder = random_adapter(home.bases / "tiny", tmp_path / "source", **options)
    publish(home, folder, "other")
    written = {tensor.name: tensor.data for tensor in GGUFReader(exported("other@1") / "adapter.gguf").tensors}
    lora_b = written["blk.0.attn_v.weight.lora_b"]
    source = load_file(folder / "adapter_model.safetensors")
    wanted = source["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"].float().numpy()
    np.testing.assert_allclose(lora_b / lora_b.shape[1], scaling * wanted, rtol=1e-6)


def test_the_base_keeps_its_bits_and_its_vocabulary(exported, home):
    reader = GGUFReader(exported() / "base.gguf")
    fields = fields_of(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    source = load_file(home.bases / "tiny" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    up = tensors["blk.0.ffn_up.weight"]
    assert up.tensor_type.name == "BF16"
    assert up.data.tobytes() == source.view(torch.uint16).numpy().tobytes()
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    assert "output.weight" not in tensors
    assert fields["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (fields["tokenizer.ggml.token_type"][0], fields["tokenizer.ggml.token_type"][3]) == (3, 1)
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.chat_template"] == (home.bases / "tiny" / "chat_template.jinja").read_text()


def test_query_rows_are_reordered_for_neighbouring_rotation(exported, home):
    tensors = {tensor.name: tensor for tensor in GGUFReader(exported() / "base.gguf").tensors}
    source = load_file(home.bases / "tiny" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    rows = [head * 32 + half * 16 + index for head in range(2) for index in range(16) for half in range(2)]
    wanted = source[rows].view(torch.uint16).numpy().tobytes()
    assert tensors["blk.0.attn_q.weight"].data.tobytes() == wanted


def change_tokenizer(folder, **changes):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for name, value in changes.items():
        part = content["model"] if name in content["model"] else content
        part[name] = value
    path.write_text(json.dumps(content))


def test_the_split_of_text_is_named_as_llama_cpp_does(tmp_path):
    folder = write_bpe_model(tmp_path / "model")
    vocabulary = read_vocabulary(folder, NUM_TOKENS)
    assert (vocabulary.pre, vocabulary.merges[:2], vocabulary.tokens[-1]) == ("gpt-2", ("t h", "th e"), "[PAD271]")
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, PRE_TOKENIZER]}
    change_tokenizer(folder, pre_tokenizer=digits)
    assert read_vocabulary(folder, NUM_TOKENS).pre == "smollm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"byte_fallback": True}, "is BPE with byte fallback"),
        ({"merges": []}, "has no merges"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by ['Whitespace']"),
        ({"pre_tokenizer": PRE_TOKENIZER, "normalizer": {"type": "Lowercase"}}, "normalizes text (Lowercase)"),
        ({"pre_tokenizer": PRE_TOKENIZER, "ignore_merges": True}, "has ignore_merges True"),
        ({"dropout": 0.1}, "sets dropout to 0.1"),
    ],
)
def test_a_tokenizer_that_would_split_otherwise_is_refused(home, lorikeet, tmp_path, changes, message):
    source = write_bpe_model(tmp_path / "model")
    change_tokenizer(source, **changes)
    prepare_tiny_base(home, source, "odd")
    publish(home, random_adapter(home.bases / "odd", tmp_path / "source"), "odd", base="odd")
    result = lorikeet("export", "gguf", "odd@1", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma2", "cohere"])
def test_another_architecture_is_refused_by_name(home, lorikeet, tmp_path, architecture):
    prepare_tiny_base(home, write_tiny_model(tmp_path / "model", architecture), "other")
    target = "query_key_value" if architecture == "gpt_neox" else "q_proj"
    folder = random_adapter(home.bases / "other", tmp_path / "source", target_modules=[target])
    publish(home, folder, "other", base="other")
    result = lorikeet("export", "gguf", "other@1", "--output", tmp_path / "out")
    assert "is not converted to GGUF; LlamaForCausalLM, MistralForCausalLM" in result.stderr
    assert result.stderr.count("\n") == 1


def greedy(model, prompts, num_tokens):
    with torch.inference_mode():
        return [
            model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]


TINY = {
    "plain": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True, "rank_pattern": {"v_proj": 2}}),
    "vocabulary": ("llama", {"target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"target_modules": ["q_proj", "k_proj", "down_proj"]}),
    "mistral": ("mistral", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "options"), TINY.values(), ids=TINY)
def test_llama_cpp_continues_as_transformers_does(home, tmp_path, exported, llama_cpp, architecture, options):  # noqa: F811
    prepare_tiny_base(home, write_bpe_model(tmp_path / "model", architecture), "other")
    folder = random_adapter(home.bases / "other", tmp_path / "source", **options)
    publish(home, folder, "other", base="other")
    files = exported("other@1")
    prompts = [[3 + (7 * row + 11 * place) % 200 for place in range(12)] for row in range(40)]
    got = llama_cpp.run(files / "base.gguf", files / "adapter.gguf", prompts, max_tokens=1)
    model = adapted(home.bases / "other", folder)
    wanted = greedy(model, prompts, 1)
    assert sum(a == b for a, b in zip(got.answers, wanted, strict=True)) >= 36  # the rest are near ties in bf16
    with model.disable_adapter():
        base = greedy(model, prompts, 1)
    assert sum(a == b for a, b in zip(base, wanted, strict=True)) <= 24


@pytest.mark.slow
def test_llama_cpp_tokenizes_as_the_base_does(exported, home, llama_cpp):  # noqa: F811
    texts = ["Hello  world\n\n x 12345 it's été 日本語 🙂\t tabs", "<|im_start|>user\nWhat?<|im_end|>\n", "a"]
    tokenizer = AutoTokenizer.from_pretrained(home.bases / "tiny")
    result = llama_cpp.run(exported() / "base.gguf", None, texts=texts)
    assert result.tokens == [tokenizer(text)["input_ids"] for text in texts]
