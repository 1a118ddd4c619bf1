import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import InvalidAdapterError, UnsupportedAdapterError
from adapters.lint.lint import lint_folder, raise_errors
from adapters.lint.peft_folder import read_lora_spec
from adapters.store.store import AdapterStore
from tests.peft_folders import HIDDEN, draft_for, write_base_folder, write_peft_folder, write_soft_prompt

NUM = 5


def errors(folder, base_folder=None):
    found = lint_folder(folder, base_folder=base_folder, max_lora_rank=16)
    return [finding.code for finding in found if finding.level == "error"]


@pytest.fixture
def base_with_embeddings(tmp_path):
    base = write_base_folder(tmp_path / "base")
    save_file({"model.embed_tokens.weight": torch.zeros(12, HIDDEN)}, base / "embeddings.safetensors")
    return base


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING", "PeftType.PROMPT_TUNING"])
def test_a_soft_prompt_that_fits_can_be_served(tmp_path, base_with_embeddings, peft_type):
    folder = write_soft_prompt(tmp_path / "soft", torch.randn(NUM, HIDDEN), peft_type=peft_type)
    assert errors(folder, base_with_embeddings) == []


@pytest.mark.parametrize(
    ("embeddings", "changes", "code"),
    [
        (torch.zeros(NUM, HIDDEN), {"num_virtual_tokens": NUM + 1}, "prompt-shape"),
        (torch.zeros(HIDDEN), {"num_virtual_tokens": HIDDEN}, "prompt-shape"),
        (torch.zeros(NUM, HIDDEN + 1), {}, "base-shape"),
        (torch.zeros(NUM, HIDDEN).index_fill(0, torch.tensor([2]), torch.nan), {}, "not-finite"),
        (torch.full((NUM, HIDDEN), 3.4e38), {}, "not-finite"),
        (torch.zeros(NUM, HIDDEN, dtype=torch.int32), {}, "dtype"),
        (torch.zeros(257, HIDDEN), {}, "virtual-tokens"),
        (torch.zeros(NUM, HIDDEN), {"num_virtual_tokens": "5"}, "virtual-tokens"),
        (torch.zeros(NUM, HIDDEN), {"num_virtual_tokens": True}, "virtual-tokens"),
        (torch.zeros(2 * NUM, HIDDEN), {"num_transformer_submodules": 2}, "encoder-decoder"),
        (torch.zeros(NUM, HIDDEN), {"task_type": "SEQ_2_SEQ_LM"}, "encoder-decoder"),
    ],
)
def test_a_soft_prompt_with_one_fault_is_refused(tmp_path, base_with_embeddings, embeddings, changes, code):
    folder = write_soft_prompt(tmp_path / "soft", embeddings, **changes)
    assert code in errors(folder, base_with_embeddings)


def test_weights_beside_the_virtual_tokens_are_refused(tmp_path):
    folder = write_soft_prompt(tmp_path / "soft", torch.zeros(NUM, HIDDEN))
    tensors = {"prompt_embeddings": torch.zeros(NUM, HIDDEN), "score.weight": torch.zeros(2, HIDDEN)}
    save_file(tensors, folder / "adapter_model.safetensors")
    assert errors(folder) == ["not-lora"]


def test_a_prompt_encoder_without_its_result_is_refused(tmp_path):
    folder = write_soft_prompt(tmp_path / "soft", torch.zeros(NUM, HIDDEN), peft_type="P_TUNING")
    save_file({"prompt_encoder.default.mlp_head.0.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapterError, match="no tensor 'prompt_embeddings'"):
        raise_errors(lint_folder(folder, base_folder=None, max_lora_rank=16), "It")


@pytest.mark.parametrize(
    ("peft_type", "reason"), [("PREFIX_TUNING", "evaluated offline only"), ("MULTITASK_PROMPT_TUNING", "task id")]
)
def test_other_learned_prompts_are_refused_by_one_reason(tmp_path, peft_type, reason):
    folder = write_soft_prompt(tmp_path / "soft", torch.zeros(NUM, HIDDEN), peft_type=peft_type)
    with pytest.raises(UnsupportedAdapterError, match=reason) as refusal:
        raise_errors(lint_folder(folder, base_folder=None, max_lora_rank=16), "It")
    assert str(refusal.value).count("peft_type is") == 1
    assert errors(folder) == ["peft-type"]


def test_a_published_soft_prompt_says_how_many_tokens(tmp_path):
    folder = write_soft_prompt(tmp_path / "soft", torch.ones(NUM, HIDDEN), peft_type="P_TUNING")
    store = AdapterStore(tmp_path / "adapters")
    manifest = store.publish(folder, draft_for(folder))
    assert (manifest.lora.num_virtual_tokens, manifest.lora.peft_type) == (NUM, "P_TUNING")
    assert manifest.lora.described == "P-tuning, 5 virtual tokens"
    assert read_lora_spec(write_peft_folder(tmp_path / "lora")).num_virtual_tokens == 0
