from typing import Any

import pytest
import torch

from config.domain import RecipeConfig
from tests.tiny_architectures import ARCHITECTURES, tiny_model
from train.errors import RecipeError
from train.methods.recipe import check_recipe, resolve_target_modules


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_r": 1024}, "max_lora_rank is 512"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"target_modules": ("q_proj", "lm_head")}, "lm_head"),
    ],
)
def test_what_vllm_would_refuse_is_refused_before_training(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(RecipeConfig(**values))


def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match=r"pissa.*max_lora_rank"):
        check_recipe(RecipeConfig(lora_r=1024, init_lora_weights="pissa"))


def test_rslora_is_served_and_so_trained() -> None:
    check_recipe(RecipeConfig(use_rslora=True, lora_r=64))


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
