import dataclasses
import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.reference import Target
from adapters.store.store import AdapterStore
from tests.exported import adapted, publish, random_adapter
from train.base.prepare import prepare_base
from train.errors import ExportError
from train.export.merge import merge_version
from train.export.tensor_files import TensorPlan, write_sharded
from train.export.version import open_version, read_pairs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")]

ADAPTERS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 32}},
    "head": {"target_modules": ["lm_head", "o_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "up_proj"]},
    "vocabulary": {"target_modules": ["embed_tokens", "lm_head"]},
    "dora": {"use_dora": True, "use_rslora": True},
}
# Of a weight that is rounded up or down to the 8 significant bits of bf16.
BF16_STEP = 2**-7


def some_logits(model):
    ids = torch.arange(3, 63).reshape(2, 30)
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
def test_the_merged_model_is_base_plus_adapter(home, tmp_path, lorikeet, options):
    folder = random_adapter(home.bases / "tiny", tmp_path / "source", **options)
    publish(home, folder, "other")
    result = lorikeet("export", "merge", "other@1", "--output", tmp_path / "out")
    assert (result.exit_code, result.exception) == (0, None), result.stderr
    wanted = adapted(home.bases / "tiny", folder)
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    logits = some_logits(wanted)
    with wanted.disable_adapter():
        effect = (some_logits(wanted) - logits).abs().max()
    assert (some_logits(got) - logits).abs().max() < 0.05 * effect  # weights are rounded up or down


@pytest.mark.parametrize("options", [ADAPTERS[name] for name in ("plain", "rslora", "patterns", "dora")])
def test_weights_are_those_of_merge_and_unload(home, tmp_path, options):
    folder = random_adapter(home.bases / "tiny", tmp_path / "source", **options)
    publish(home, folder, "other")
    (tmp_path / "out").mkdir()
    merge_version(open_version(home, "other@1"), tmp_path / "out")
    wanted = adapted(home.bases / "tiny", folder).merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor.float(), wanted[name], rtol=BF16_STEP, atol=1e-6, msg=name)


def test_a_changed_head_is_untied_from_the_embedding(home, tmp_path, lorikeet):
    publish(home, random_adapter(home.bases / "tiny", tmp_path / "source", target_modules=["lm_head"]), "head")
    lorikeet("export", "merge", "head@1", "--output", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(home.bases / "tiny" / "model.safetensors")
    assert torch.equal(tensors["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_folder_can_be_prepared_as_a_base(home, tmp_path, lorikeet):
    lorikeet("export", "merge", "colours@1", "--output", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md"} <= names
    assert "manifest.json" not in names
    AutoTokenizer.from_pretrained(tmp_path / "out")
    assert prepare_base(str(tmp_path / "out"), "merged", "none", home=home).architecture == "LlamaForCausalLM"


def test_large_weights_are_written_in_shards(home, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "whole").mkdir()
    version = open_version(home, "colours@1")
    merge_version(version, tmp_path / "out", shard_bytes=40_000)
    merge_version(version, tmp_path / "whole")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    sharded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_stored_bitsandbytes_tensors_are_dequantized(home, tmp_path, model_folder, lorikeet, quantization):
    prepare_base(str(model_folder), "packed", quantization, "bitsandbytes", home=home)
    prepare_base(str(model_folder), "unpacked", quantization, "dequantized", home=home)
    publish(home, tmp_path / "colours", "packed", base="packed")
    result = lorikeet("export", "merge", "packed@1", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    wanted = adapted(home.bases / "unpacked", tmp_path / "colours")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    logits = some_logits(wanted)
    assert (some_logits(got) - logits).abs().max() < 0.05 * logits.abs().max()
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    plans = [TensorPlan(f"layer{number}", torch.float32, (10, 10)) for number in range(9)]
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    counts = []

    def tensors():
        for plan in plans:
            counts.append(len(alive))
            tensor = torch.ones(plan.shape)
            alive.add(tensor)
            yield tensor
            del tensor

    write_sharded(tmp_path, plans, tensors(), shard_bytes=1000)
    assert max(counts) <= 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 5


def test_an_adapter_that_is_more_than_lora_is_refused(home, tmp_path, lorikeet):
    folder = AdapterStore(home.adapters).folder(Target("colours", 1))
    config = json.loads((folder / "adapter_config.json").read_text()) | {"use_qalora": True}
    source = shutil.copytree(folder, tmp_path / "qalora", ignore=shutil.ignore_patterns("manifest.json"))
    (source / "adapter_config.json").chmod(0o644)
    (source / "adapter_config.json").write_text(json.dumps(config))
    version = dataclasses.replace(open_version(home, "colours@1"), folder=source)
    with pytest.raises(ExportError, match="'colours@1' is not a plain LoRA and cannot be exported: use_qalora is set"):
        read_pairs(version)


@pytest.mark.parametrize("words", [["export", "gguf"], ["export", "ollama"]], ids=" ".join)
def test_dora_leaves_as_a_merged_model_only(home, tmp_path, lorikeet, words):
    publish(home, random_adapter(home.bases / "tiny", tmp_path / "dora", use_dora=True), "dora")
    result = lorikeet(*words, "dora@1", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "'dora@1' is DoRA" in result.stderr
    assert "`lorikeet export merge` writes base and adapter as one model" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    combined = lorikeet("adapters", "merge", "dora@1:0.5", "colours@1:0.5", "--name", "both")
    assert (combined.exit_code, combined.stderr.count("\n")) == (1, 1)
    assert "'dora@1' is DoRA" in combined.stderr


def test_a_layer_that_the_base_lacks_is_named(home, tmp_path):
    version = open_version(home, "colours@1")
    tensors = load_file(version.folder / "adapter_model.safetensors")
    renamed = {name.replace("layers.1.", "layers.9."): tensor for name, tensor in tensors.items()}
    source = shutil.copytree(version.folder, tmp_path / "far")
    (source / "adapter_model.safetensors").unlink()
    save_file(renamed, source / "adapter_model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"'model.layers.9.mlp.down_proj' .* no such layer. It cannot be merged"):
        merge_version(dataclasses.replace(version, folder=source), tmp_path / "out")
