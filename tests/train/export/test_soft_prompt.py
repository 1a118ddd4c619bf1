import pytest
from peft import PeftConfig
from safetensors.torch import load_file

from tests.exported import publish
from tests.soft_prompts import save_soft_prompt


@pytest.fixture
def soft_prompt(home, tmp_path):
    folder = save_soft_prompt(home.bases / "tiny", tmp_path / "soft", "encoder")
    publish(home, folder, "soft")
    return folder


def test_peft_reads_an_exported_soft_prompt(soft_prompt, lorikeet, tmp_path):
    assert lorikeet("export", "peft", "soft@1", "--output", tmp_path / "out").exit_code == 0
    exported, saved = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "out", soft_prompt))
    assert exported["prompt_embeddings"].equal(saved["prompt_embeddings"])
    assert PeftConfig.from_pretrained(str(tmp_path / "out")).num_virtual_tokens == 19
    assert "A soft prompt in PEFT's format" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("words", [["export", "merge"], ["export", "gguf"], ["export", "ollama"]])
def test_what_changes_weights_refuses_a_soft_prompt(soft_prompt, lorikeet, tmp_path, words):
    result = lorikeet(*words, "soft@1", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "'soft@1' is a soft prompt" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_soft_prompt_is_not_combined(soft_prompt, lorikeet):
    result = lorikeet("adapters", "merge", "colours@1:0.5", "soft@1:0.5", "--name", "both")
    assert result.exit_code == 1
    assert "'soft@1' is a soft prompt" in result.stderr


def test_show_and_list_tell_a_soft_prompt(soft_prompt, lorikeet):
    assert "P-tuning, 19 virtual tokens" in lorikeet("adapters", "show", "soft@1").stdout
    assert lorikeet("adapters", "list").exit_code == 0
