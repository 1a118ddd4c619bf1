from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import PreTrainedModel

from adapters.store.manifest import BaseManifest
from config.method import MethodConfig
from config.training import TrainingConfig
from tests.tiny_architectures import ARCHITECTURES, tiny_model
from train.errors import RecipeError
from train.methods.peft_errors import peft_errors_named
from train.methods.table import check_method, method_of
from train.methods.targets import resolve_target_modules


def of(**method: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"method": method})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 1024}, "max_lora_rank is 512"),
        ({"r": 300, "init_lora_weights": "pissa"}, "r is 600; the server's max_lora_rank is 512"),
        ({"r": 300, "init_lora_weights": "eva"}, "r is 600"),
        ({"init_lora_weights": "loftq"}, "loftq.*quantized already.*pissa"),
        ({"r": 3, "init_lora_weights": "orthogonal"}, "even r; got 3"),
        ({"name": "vera", "convert_rank": 600}, "convert_rank is 600.*512"),
        ({"name": "lokr", "target_modules": ("lm_head",)}, "only linear layers can be converted"),
        ({"target_modules": ("q_proj", "lm_head")}, "lm_head"),
    ],
)
def test_what_vllm_would_refuse_is_refused_before_training(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_method(of(**values))


def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match=r"lm_head"):
        check_method(of(r=1024, target_modules=("lm_head",)))


def test_rslora_is_served_and_so_trained() -> None:
    check_method(of(use_rslora=True, r=64))


def layers() -> torch.nn.Module:
    return torch.nn.ModuleDict({"q_proj": torch.nn.Linear(2, 2), "lm_head": torch.nn.Linear(2, 2)})


def test_all_linear_means_every_linear_layer_but_the_output() -> None:
    assert resolve_target_modules(layers(), "all-linear") == ["q_proj"]


SPLIT_LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
MERGED_LAYERS = {
    "phi3": ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
    "gpt_neox": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_finds_each_architectures_layers(architecture: str) -> None:
    wanted = MERGED_LAYERS.get(architecture, SPLIT_LAYERS)
    assert resolve_target_modules(tiny_model(architecture), "all-linear") == wanted


def test_an_unknown_target_module_is_refused_with_those_that_exist() -> None:
    with pytest.raises(RecipeError, match=r"\['wrong'\].*\['q_proj'\]"):
        resolve_target_modules(layers(), ("wrong",))


def adapt(model: PreTrainedModel, settings: MethodConfig) -> None:
    config = method_of(settings).peft_config(settings, model)
    assert config is not None
    get_peft_model(model, config)


@pytest.mark.parametrize(
    "method",
    [{"init_lora_weights": "pissa"}, {"init_lora_weights": "eva"}, {"name": "full"}, {"name": "lokr"}],
    ids=str,
)
def test_only_a_plain_lora_continues_a_version_or_has_a_reward_head(method: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"`from: medical@3` continues"):
        check_method(TrainingConfig.model_validate({"method": method, "from": "medical@3"}))
    with pytest.raises(RecipeError, match=r"`objective: reward` trains a head|`objective: reward` does not have"):
        check_method(TrainingConfig.model_validate({"method": method, "objective": "reward"}))


@pytest.mark.parametrize(
    "method", [{"init_lora_weights": "olora"}, {"name": "oft"}, {"name": "full"}, {"name": "vera"}]
)
def test_a_base_of_bitsandbytes_tensors_is_refused(method: dict[str, Any]) -> None:
    settings = of(**method).method
    fields: dict[str, Any] = {"name": "small-nf4", "storage": "bitsandbytes"}
    base = BaseManifest.model_construct(**fields)
    with pytest.raises(RecipeError, match=r"'small-nf4' stores bitsandbytes tensors.*dequantized"):
        method_of(settings).check_base(settings, base)


def test_virtual_tokens_are_not_trained_on_packed_documents() -> None:
    packed = TrainingConfig.model_validate({"method": "prompt_tuning", "objective": "text"})
    with pytest.raises(RecipeError, match="packs documents into rows"):
        check_method(packed, allow_unserved=True)


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_virtual_tokens_are_not_trained_by_reward(objective: str) -> None:
    rewarded = TrainingConfig.model_validate({"method": "prompt_tuning", "objective": objective})
    with pytest.raises(RecipeError, match="log-probabilities of a prompt's answers in one row"):
        check_method(rewarded)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_no_layer_has_is_refused(key: str) -> None:
    model = tiny_model("llama")
    method = of(**{key: {"layers.1.q_proj": 8, "self_attn.q_proj": 4}, "target_modules": ("q_proj",)}).method
    with pytest.raises(RecipeError, match=rf"{key} has 'layers.1.q_proj', which no adapted layer's name ends with"):
        method_of(method).peft_config(method, model)
    fits = of(**{key: {"self_attn.q_proj": 4}}).method
    method_of(fits).peft_config(fits, model)


@pytest.mark.parametrize(
    "method",
    [
        {"target_modules": ()},
        {"layers_to_transform": 7},
        {"name": "c3a", "block_size": 7},
        {"name": "gralora", "r": 5, "gralora_k": 2},
        {"name": "vblora", "vector_length": 7},
        {"name": "psoft", "r": 5000},
    ],
)
def test_what_peft_refuses_is_one_line(method: dict[str, Any]) -> None:
    settings, model = of(**method).method, tiny_model("llama")
    with (
        pytest.raises(RecipeError, match=r"PEFT cannot use `method` \{.*'name': '.* on this base: ") as refused,
        peft_errors_named(settings),
    ):
        adapt(model, settings)
    assert "\n" not in str(refused.value)


def test_errors_of_others_are_not_pefts() -> None:
    with pytest.raises(ValueError, match="ours"), peft_errors_named(of().method):
        raise ValueError("ours")
