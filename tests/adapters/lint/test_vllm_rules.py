"""Our lint against vLLM's own rules: an upgrade of vLLM that changes them shows here."""

from types import SimpleNamespace

import pytest
import torch

from adapters.lint.config import check_adapter_config
from adapters.lint.lint import lint_folder
from tests.peft_folders import CONFIG, HIDDEN, MODULES, RANK, lora_tensors, write_peft_folder

pytestmark = pytest.mark.engine  # imports vLLM, which takes as long as many tests together

A = f"base_model.model.{MODULES[0]}.lora_A.weight"


@pytest.fixture(scope="module")
def vllm_lora():
    """vLLM's reader of PEFT folders."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    return SimpleNamespace(helper=PEFTHelper, model=LoRAModel)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"alora_invocation_tokens": [1]},
        {"layer_replication": [[0, 1]]},
        {"use_bdlora": {"nblocks": 2}},
        {"use_qalora": True},
        {"r": 32},
        {"rank_pattern": {"q_proj": 32}},
    ],
)
def test_what_lint_refuses_vllm_refuses(vllm_lora, change):
    assert check_adapter_config(CONFIG | change, max_lora_rank=16)
    with pytest.raises(ValueError, match=r".+"):
        vllm_lora.helper.from_dict(CONFIG | change).validate_legal(SimpleNamespace(max_lora_rank=16))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 16}},
        {"alpha_pattern": {"q_proj": 8}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
    ],
)
def test_what_lint_accepts_vllm_accepts(vllm_lora, change):
    assert check_adapter_config(CONFIG | change, max_lora_rank=16) == []
    vllm_lora.helper.from_dict(CONFIG | change).validate_legal(SimpleNamespace(max_lora_rank=16))


def load(vllm_lora, folder):
    helper = vllm_lora.helper.from_local_dir(str(folder), max_position_embeddings=64)
    return vllm_lora.model.from_local_checkpoint(
        str(folder), {"q_proj", "v_proj"}, peft_helper=helper, lora_model_id=1, device="cpu"
    )


def test_vllm_reads_the_modules_that_lint_reads(vllm_lora, peft_folder):
    assert lint_folder(peft_folder, base_folder=None, max_lora_rank=16) == []
    assert sorted(load(vllm_lora, peft_folder).loras) == sorted(MODULES)


def test_tensors_that_lint_refuses_vllm_refuses(vllm_lora, tmp_path):
    tensors = lora_tensors() | {"base_model.model.prompt_embeddings": torch.ones(RANK, HIDDEN)}
    folder = write_peft_folder(tmp_path / "bad", tensors=tensors)
    assert lint_folder(folder, base_folder=None, max_lora_rank=16)
    with pytest.raises(ValueError, match="unsupported LoRA weight"):
        load(vllm_lora, folder)
