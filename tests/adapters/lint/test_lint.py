import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapters.errors import InvalidAdapterError, InvalidBaseError, UnsupportedAdapterError
from adapters.lint.config import check_adapter_config, rank_of
from adapters.lint.lint import lint_folder, raise_errors
from tests.peft_folders import (
    CONFIG,
    HIDDEN,
    MODULES,
    RANK,
    draft_for,
    lora_tensors,
    write_base_folder,
    write_peft_folder,
)

A, B = f"base_model.model.{MODULES[0]}.lora_A.weight", f"base_model.model.{MODULES[0]}.lora_B.weight"
MAGNITUDE = f"base_model.model.{MODULES[0]}.lora_magnitude_vector"


def lint(folder, base_folder=None, max_lora_rank=16):
    return lint_folder(folder, base_folder=base_folder, max_lora_rank=max_lora_rank)


def errors(findings):
    return [finding.code for finding in findings if finding.level == "error"]


def warnings(findings):
    return [finding.code for finding in findings if finding.level == "warning"]


def test_a_good_folder_fits_its_base_and_says_how_much_of_it(peft_folder, base_folder):
    (finding,) = lint(peft_folder, base_folder)
    assert (finding.level, finding.message) == ("info", "4/4 modules apply to 'tiny'.")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"peft_type": "IA3"}, "peft-type"),
        ({"use_dora": True, "target_modules": ["q_proj", "lm_head"]}, "dora-layer"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora-bias"),
        ({"modules_to_save": ["lm_head"]}, "modules-to-save"),
        ({"init_lora_weights": "pissa"}, "init-lora-weights"),
        ({"init_lora_weights": "pissa_niter_16"}, "init-lora-weights"),
        ({"init_lora_weights": "olora"}, "init-lora-weights"),
        ({"init_lora_weights": "corda"}, "init-lora-weights"),
        ({"init_lora_weights": "loftq"}, "init-lora-weights"),
        ({"alora_invocation_tokens": [1]}, "alora-invocation-tokens"),
        ({"layer_replication": [[0, 1]]}, "layer-replication"),
        ({"use_bdlora": {"nblocks": 2}}, "use-bdlora"),
        ({"use_qalora": True}, "use-qalora"),
        ({"kasa_config": {}, "arrow_config": {"top_k": 1}}, "arrow-config"),
        ({"trainable_token_indices": [0]}, "trainable-token-indices"),
        ({"r": 17}, "rank"),
        ({"rank_pattern": {"q_proj": 32}}, "rank"),
    ],
)
def test_what_vllm_does_not_serve_is_an_error_with_a_fix(change, code):
    (finding,) = check_adapter_config(CONFIG | change, max_lora_rank=16)
    assert (finding.level, finding.code, finding.is_unsupported) == ("error", code, True)
    assert finding.fix


@pytest.mark.parametrize(
    "change",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 8}},
        {"rank_pattern": {"q_proj": 16}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": False},
        {"lora_dropout": 0.1},
        {"bias": None},
    ],
)
def test_what_vllm_serves_is_no_finding(change):
    assert check_adapter_config(CONFIG | change, max_lora_rank=16) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"r": 0}, "rank"),
        ({"r": "16"}, "rank"),
        ({"r": True}, "rank"),
        ({"rank_pattern": {"(": 4}}, "rank-pattern"),
        ({"rank_pattern": ["q_proj"]}, "rank-pattern"),
        ({"lora_alpha": None}, "lora-alpha"),
        ({"alpha_pattern": {"(a+)+": 4}}, "alpha-pattern"),
        ({"alpha_pattern": {"q_proj": "4"}}, "lora-alpha"),
    ],
)
def test_a_senseless_configuration_is_broken_not_unsupported(change, code):
    (finding,) = check_adapter_config(CONFIG | change, max_lora_rank=16)
    assert (finding.level, finding.code, finding.is_unsupported) == ("error", code, False)


def test_a_rank_message_names_got_and_wanted_and_both_ways_out():
    (finding,) = check_adapter_config(CONFIG | {"r": 64}, max_lora_rank=16)
    assert str(finding) == (
        "r is 64; the server's max_lora_rank is 16. Train with r up to 16, or serve with a max_lora_rank of 64 or more."
    )


def test_pefts_own_defaults_are_served():
    from peft import LoraConfig

    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear").to_dict()
    assert check_adapter_config(config, max_lora_rank=16) == []


def test_an_adapter_of_another_architecture_would_answer_as_the_base(peft_folder, tmp_path):
    base = write_base_folder(tmp_path / "gpt", modules=("transformer.h.0.attn.c_attn",))
    (finding,) = lint(peft_folder, base)
    assert finding.code == "no-module-applies"
    assert "0/4 modules apply to 'gpt', so it would answer as the base" in finding.message


def test_an_adapter_of_a_deeper_base_names_the_layers_that_are_missing(peft_folder, tmp_path):
    base = write_base_folder(tmp_path / "shallow", modules=MODULES[:2])
    findings = lint(peft_folder, base)
    assert errors(findings) == ["module-missing"]
    assert "2 modules do not exist in 'shallow': model.layers.1.self_attn.q_proj" in findings[0].message
    assert findings[1].message == "2/4 modules apply to 'shallow'."


def test_an_adapter_of_a_wider_base_names_both_shapes(tmp_path, base_folder):
    tensors = lora_tensors() | {A: torch.ones(RANK, 16)}
    findings = lint(write_peft_folder(tmp_path / "wide", tensors=tensors), base_folder)
    assert errors(findings) == ["base-shape"]
    assert f"{MODULES[0]} is for (8, 16), the base has (8, 8)" in findings[0].message


def test_packed_weights_tell_no_shape_and_are_not_compared(peft_folder, tmp_path):
    base = tmp_path / "packed"
    base.mkdir()
    packed = {f"{module}.weight": torch.zeros(32, 1, dtype=torch.uint8) for module in MODULES}
    save_file(packed, base / "model.safetensors")
    assert errors(lint(peft_folder, base)) == []


def test_a_tied_output_head_is_a_layer(tmp_path):
    base = tmp_path / "tied"
    base.mkdir()
    save_file({"model.embed_tokens.weight": torch.zeros(20, HIDDEN)}, base / "model.safetensors")
    (base / "config.json").write_text('{"tie_word_embeddings": true}')
    tensors = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(RANK, HIDDEN),
        "base_model.model.lm_head.lora_B.weight": torch.ones(20, RANK),
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(RANK, 20),
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(HIDDEN, RANK),
    }
    (finding,) = lint(write_peft_folder(tmp_path / "head", tensors=tensors), base)
    assert finding.message == "2/2 modules apply to 'tied'."


def test_a_base_without_weights_is_refused(peft_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidBaseError, match=r"'empty' holds no \*\.safetensors file"):
        lint(peft_folder, tmp_path / "empty")


def test_a_sharded_base_is_read_whole(peft_folder, tmp_path):
    base = tmp_path / "sharded"
    base.mkdir()
    for shard, modules in enumerate((MODULES[:2], MODULES[2:])):
        weights = {f"{module}.weight": torch.zeros(HIDDEN, HIDDEN) for module in modules}
        save_file(weights, base / f"model-{shard}.safetensors")
    assert errors(lint(peft_folder, base)) == []


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        pytest.param({"base_model.model.prompt_embeddings": torch.ones(2, 2)}, "not-lora", id="prompt"),
        pytest.param({MAGNITUDE: torch.ones(HIDDEN)}, "dora-magnitude", id="DoRA, and the configuration says LoRA"),
        pytest.param({A: torch.ones(3, HIDDEN)}, "rank-shape", id="another rank than the configuration"),
        pytest.param({A: torch.ones(RANK, HIDDEN, 1)}, "rank-shape", id="a convolution"),
        pytest.param({A: torch.full((RANK, HIDDEN), float("nan"))}, "not-finite", id="NaN"),
        pytest.param({B: torch.full((HIDDEN, RANK), float("-inf"))}, "not-finite", id="infinity"),
        pytest.param({A: torch.ones(RANK, HIDDEN, dtype=torch.int8)}, "dtype", id="integers"),
    ],
)
def test_bad_tensors_are_found(tmp_path, tensors, code):
    folder = write_peft_folder(tmp_path / "bad", tensors=lora_tensors() | tensors)
    assert errors(lint(folder)) == [code]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_type_is_read_bit_by_bit(tmp_path, dtype):
    good = {name: tensor.to(dtype) for name, tensor in lora_tensors().items()}
    bad = good | {A: torch.full((RANK, HIDDEN), float("inf"), dtype=dtype)}
    assert lint(write_peft_folder(tmp_path / "good", tensors=good)) == []
    assert errors(lint(write_peft_folder(tmp_path / "bad", tensors=bad))) == ["not-finite"]


def test_half_a_pair_is_found(tmp_path):
    tensors = lora_tensors()
    del tensors[B]
    assert errors(lint(write_peft_folder(tmp_path / "half", tensors=tensors))) == ["half-pair"]


def test_a_file_without_tensors_is_found(tmp_path):
    assert errors(lint(write_peft_folder(tmp_path / "empty", tensors={}))) == ["empty"]


def test_all_zero_lora_b_is_a_warning(tmp_path):
    tensors = {name: t * 0 if "lora_B" in name else t for name, t in lora_tensors().items()}
    tensors[B] = torch.full((HIDDEN, RANK), -0.0)
    findings = lint(write_peft_folder(tmp_path / "zero", tensors=tensors))
    assert (errors(findings), warnings(findings)) == ([], ["no-op"])


def test_zero_alpha_is_a_warning(tmp_path):
    assert warnings(lint(write_peft_folder(tmp_path / "alpha", lora_alpha=0))) == ["no-op"]


def test_a_rank_pattern_is_followed(tmp_path):
    tensors = lora_tensors() | {A: torch.ones(4, HIDDEN), B: torch.ones(HIDDEN, 4)}
    folder = write_peft_folder(tmp_path / "pattern", tensors=tensors, rank_pattern={"layers.0.self_attn.q_proj": 4})
    assert lint(folder) == []


def test_a_folder_that_is_none_is_unreadable(tmp_path):
    (finding,) = lint(tmp_path / "nowhere")
    assert finding.code == "unreadable"
    assert re.fullmatch(r"There is no folder '.*nowhere'\.", finding.message)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_configuration_that_is_no_object_is_unreadable(peft_folder, text):
    (peft_folder / "adapter_config.json").write_text(text)
    assert errors(lint(peft_folder)) == ["unreadable"]


def test_a_configuration_without_the_keys_that_vllm_reads_is_found(peft_folder):
    (peft_folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK}))
    (finding,) = lint(peft_folder)
    assert finding.message == "adapter_config.json lacks ['lora_alpha', 'target_modules']."


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="the last byte is missing"),
        pytest.param(lambda content: content[:20], id="torn in the header"),
        pytest.param(lambda content: b"\xff" * 8 + content[8:], id="a huge header"),
        pytest.param(lambda content: (4).to_bytes(8, "little") + b"null", id="no object"),
        pytest.param(lambda content: (8).to_bytes(8, "little") + b'{"a":{}}', id="no offsets"),
    ],
)
def test_torn_weights_are_unreadable(peft_folder, damage):
    path = peft_folder / "adapter_model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    (finding,) = lint(peft_folder)
    assert finding.code == "unreadable"
    assert "is not a complete safetensors file" in finding.message


def test_only_unsupported_findings_raise_unsupported(tmp_path):
    unsupported = lint(write_peft_folder(tmp_path / "qalora", use_qalora=True))
    with pytest.raises(UnsupportedAdapterError, match="does not serve QA-LoRA"):
        raise_errors(unsupported, "It")
    broken = lint(write_peft_folder(tmp_path / "both", use_qalora=True, tensors={}))
    with pytest.raises(InvalidAdapterError, match="contains no LoRA weights") as refusal:
        raise_errors(broken, "It")
    assert not isinstance(refusal.value, UnsupportedAdapterError)


def test_warnings_raise_nothing(tmp_path):
    raise_errors(lint(write_peft_folder(tmp_path / "alpha", lora_alpha=0)), "It")


BF16_MAX = 3.3895e38
"""Just below the largest bfloat16."""


@pytest.mark.parametrize(
    ("name", "value", "changes"),
    [
        pytest.param(A, 3.3999e38, {}, id="rounded to infinity"),
        pytest.param(B, 3.3999e38, {"lora_alpha": 1}, id="before a scaling below one"),
        pytest.param(B, BF16_MAX, {"lora_alpha": 4}, id="alpha over rank"),
        pytest.param(B, -1e35, {"lora_alpha": 1e4}, id="a large alpha"),
        pytest.param(B, BF16_MAX, {"lora_alpha": 3, "use_rslora": True}, id="rslora"),
        pytest.param(B, BF16_MAX, {"lora_alpha": 1, "alpha_pattern": {"q_proj": 16}}, id="a pattern"),
    ],
)
def test_a_weight_that_overflows_as_served_is_refused_by_name(tmp_path, name, value, changes):
    tensors = lora_tensors()
    tensors[name][0, 0] = value
    findings = lint(write_peft_folder(tmp_path / "large", tensors=tensors, **changes))
    (finding,) = [finding for finding in findings if finding.level == "error"]
    assert finding.code == "overflow"
    assert name in finding.message
    assert "bfloat16" in finding.message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_weights_that_stay_finite_are_warned_of(tmp_path, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in lora_tensors().items()}
    tensors[B][0, 0] = -60.0  # times a scaling of 2
    (finding,) = lint(write_peft_folder(tmp_path / "large", tensors=tensors))
    assert (finding.level, finding.code) == ("warning", "large-weights")
    assert f"{B} (120)" in finding.message


def test_ordinary_weights_and_a_large_alpha_are_not_warned_of(tmp_path):
    tensors = {name: tensor / 100 for name, tensor in lora_tensors().items()}
    assert lint(write_peft_folder(tmp_path / "fine", tensors=tensors, lora_alpha=256)) == []


@pytest.mark.parametrize("change", [{"peft_type": "IA3", "r": "x"}, {"lora_alpha": "x"}, {"r": 0}])
def test_weights_without_a_scaling_are_looked_at_all_the_same(tmp_path, change):
    tensors = lora_tensors()
    tensors[A][0, 0] = float("nan")
    assert "not-finite" in errors(lint(write_peft_folder(tmp_path / "bad", tensors=tensors, **change)))


def test_a_weight_that_overflows_is_not_published(tmp_path, store):
    tensors = lora_tensors()
    tensors[B][0, 0] = BF16_MAX
    folder = write_peft_folder(tmp_path / "large", tensors=tensors)
    with pytest.raises(InvalidAdapterError, match=r"lora_B.weight \(3.39e\+38 times 2\)"):
        store.publish(folder, draft_for(folder))
    assert store.names() == []


NAMES = st.from_regex(r"(model\.)?layers\.[0-3]\.(self_attn\.[qk]_proj|mlp\.up_proj)", fullmatch=True)
PATTERN_PARTS = st.sampled_from(
    ["layers", r"\.", ".", "[0-3]", r"\d+", "(0|1)", ".*", "self_attn", "q_proj", "[qk]_proj", "mlp", "up_proj", "$"]
)


@pytest.mark.slow
@given(name=NAMES, parts=st.lists(PATTERN_PARTS, min_size=1, max_size=6))
def test_a_rank_pattern_matches_what_peft_matches(name, parts):
    pattern = "".join(parts)
    expected = bool(re.match(rf"(.*\.)?({pattern})$", name))  # peft.utils.other, get_pattern_key
    assert (rank_of(name, {"r": 8, "rank_pattern": {pattern: 4}}) == 4) == expected


def test_no_rank_pattern_takes_more_than_linear_time():
    """With Python's `re` one name would take years."""
    config = CONFIG | {"rank_pattern": {".*" * 40 + "!": 4}}
    assert [rank_of(f"model.layers.{number}.self_attn.q_proj", config) for number in range(100)] == [CONFIG["r"]] * 100


@pytest.mark.parametrize("pattern", ["(?=q)q_proj", "a" * 600, "x{,3}", "[[:alpha:]]", r"(q)\1"])
def test_a_rank_pattern_that_means_something_else_elsewhere_is_refused(pattern):
    (finding,) = check_adapter_config(CONFIG | {"rank_pattern": {pattern: 2}}, max_lora_rank=16)
    assert finding.code == "rank-pattern"
