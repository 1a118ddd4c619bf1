"""Adapters that were trained with added tokens are told so, whatever form they keep them in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.lint.config import LintFinding, check_adapter_config
from adapters.lint.lint import lint_folder
from tests.peft_folders import CONFIG, HIDDEN, RANK, lora_tensors, write_peft_folder

PREFIX = "base_model.model."
EMBEDDING, HEAD = f"{PREFIX}model.embed_tokens", f"{PREFIX}lm_head"
NUM_TOKENS = 20


@pytest.fixture
def base(base_folder: Path) -> Path:
    """With a vocabulary of 20 tokens, of which the tokenizer knows two as added ones."""
    vocabulary = {"model.embed_tokens.weight": torch.zeros(NUM_TOKENS, HIDDEN)}
    save_file(vocabulary, base_folder / "model-2.safetensors")
    (base_folder / "config.json").write_text('{"tie_word_embeddings": true}')
    (base_folder / "manifest.json").unlink()
    write_tokenizer(base_folder, "<pad>", "<eos>", vocabulary={"word": 1, "<think>": 2})
    return base_folder


def write_tokenizer(folder: Path, *added: str, vocabulary: dict[str, int] | None = None) -> None:
    tokens = [{"id": number, "content": token} for number, token in enumerate(added)]
    content = {"added_tokens": tokens, "model": {"vocab": vocabulary or {}}}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def folder_with(tmp_path: Path, **tensors: torch.Tensor) -> Path:
    return write_peft_folder(tmp_path / "adapter", tensors=lora_tensors() | tensors)


def error(folder: Path, base_folder: Path | None) -> LintFinding:
    (finding,) = (f for f in lint_folder(folder, base_folder=base_folder, max_lora_rank=16) if f.level == "error")
    assert (finding.code, finding.is_unsupported) == ("added-tokens", True)
    assert "as a new base" in finding.fix
    return finding


@pytest.mark.parametrize("name", [f"{EMBEDDING}.weight", f"{HEAD}.weight", f"{HEAD}.modules_to_save.weight"])
def test_a_resized_layer_is_told_with_both_sizes(tmp_path: Path, base: Path, name: str) -> None:
    finding = error(folder_with(tmp_path, **{name: torch.ones(NUM_TOKENS + 2, HIDDEN)}), base)
    assert "It was trained with added tokens: " in finding.message
    assert "has 22 rows, the base 20" in finding.message


def test_a_whole_layer_of_the_same_size_may_be_a_copy(tmp_path: Path, base: Path) -> None:
    finding = error(folder_with(tmp_path, **{f"{EMBEDDING}.weight": torch.ones(NUM_TOKENS, HIDDEN)}), base)
    assert "as full layers; trainers save them if tokens were added" in finding.message
    assert "save_embedding_layers=False" in finding.fix


def test_a_whole_layer_is_told_without_a_base(tmp_path: Path) -> None:
    assert (
        f"It holds {HEAD}.weight as full layers"
        in error(folder_with(tmp_path, **{f"{HEAD}.weight": torch.ones(NUM_TOKENS, HIDDEN)}), None).message
    )


def test_trained_rows_of_added_tokens_are_told(tmp_path: Path, base: Path) -> None:
    name = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"
    assert "trained with added tokens" in error(folder_with(tmp_path, **{name: torch.ones(2, HIDDEN)}), base).message


def test_a_lora_on_a_resized_vocabulary_is_told(tmp_path: Path, base: Path) -> None:
    tensors = {
        f"{HEAD}.lora_A.weight": torch.ones(RANK, HIDDEN),
        f"{HEAD}.lora_B.weight": torch.ones(NUM_TOKENS + 2, RANK),
        f"{EMBEDDING}.lora_embedding_A": torch.ones(RANK, NUM_TOKENS + 2),
        f"{EMBEDDING}.lora_embedding_B": torch.ones(HIDDEN, RANK),
    }
    finding = error(folder_with(tmp_path, **tensors), base)
    assert "lm_head is for 22 tokens, the base has 20" in finding.message
    assert "model.embed_tokens is for 22 tokens" in finding.message


def test_other_whole_layers_are_no_matter_of_tokens(tmp_path: Path, base: Path) -> None:
    folder = folder_with(tmp_path, **{f"{PREFIX}model.norm.weight": torch.ones(HIDDEN)})
    findings = lint_folder(folder, base_folder=base, max_lora_rank=16)
    assert [finding.code for finding in findings if finding.level == "error"] == ["not-lora"]


@pytest.mark.parametrize("change", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [21]}])
def test_the_configuration_says_so_too(change: dict[str, object]) -> None:
    (finding,) = check_adapter_config(CONFIG | change, max_lora_rank=16)
    assert "added" in finding.message


def test_added_tokens_of_the_tokenizer_are_named(tmp_path: Path, base: Path) -> None:
    folder = folder_with(tmp_path)
    write_tokenizer(folder, "<pad>", "<think>", "<tool[/x]>", "<b>")
    found = lint_folder(folder, base_folder=base, max_lora_rank=16)
    (warning,) = (finding for finding in found if finding.code == "added-tokens")
    assert warning.level == "warning"
    assert "has 2 tokens that the base's lacks: '<tool[/x]>', '<b>'" in warning.message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"added_tokens": 7}', '{"added_tokens": [7, {"content": 1}]}'])
def test_a_tokenizer_that_says_nothing_is_passed_over(tmp_path: Path, base: Path, content: str) -> None:
    folder = folder_with(tmp_path)
    (folder / "tokenizer.json").write_text(content)
    findings = lint_folder(folder, base_folder=base, max_lora_rank=16)
    assert [finding.code for finding in findings] == ["tokenizer", "modules-apply"]
