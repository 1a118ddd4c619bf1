"""Folders that are no PEFT folder are named as what they are, each with the way out."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.lint.config import LintFinding
from adapters.lint.lint import lint_folder
from tests.peft_folders import CONFIG, lora_tensors, write_peft_folder

ADAPTER_CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
ONE = {"x.weight": torch.ones(2)}


def refusal(folder: Path) -> LintFinding:
    (finding,) = lint_folder(folder, base_folder=None, max_lora_rank=16)
    assert finding.level == "error"
    assert finding.fix
    return finding


def folder_with(path: Path, *files: str, config: bool = True, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A folder without PEFT's weights; safetensors files hold the tensors, all others a pickle's first bytes."""
    path.mkdir()
    for name in files:
        (path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(tensors or ONE, path / name)
        else:
            (path / name).write_bytes(b"\x80\x04")
    if config:
        (path / ADAPTER_CONFIG).write_text(json.dumps(CONFIG))
    return path


MLX = {"model.layers.0.self_attn.q_proj.lora_a": torch.ones(8, 2)}
KOHYA = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(2, 2)}
DIFFUSERS = {"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("make", "message", "fix"),
    [
        pytest.param(
            lambda p: folder_with(p, "adapter_model.bin"),
            "only as 'adapter_model.bin': a pickle",
            "safe_serialization=True",
            id="pickled by PEFT",
        ),
        pytest.param(lambda p: folder_with(p, "adapter_0.pt"), "'adapter_0.pt': a pickle", "", id="by torchtune"),
        pytest.param(lambda p: folder_with(p, "lit_model.pth.lora"), "'lit_model.pth.lora'", "", id="by LitGPT"),
        pytest.param(
            lambda p: folder_with(
                p, "adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors"
            ),
            "2 shards, 'adapter_model-00001-of-00002.safetensors' to",
            "Join them",
            id="sharded",
        ),
        pytest.param(
            lambda p: folder_with(p, "adapters.safetensors", "0000100_adapters.safetensors", tensors=MLX),
            "'adapters.safetensors' is an adapter of MLX",
            "transposed",
            id="MLX",
        ),
        pytest.param(lambda p: folder_with(p, "x.safetensors", tensors=MLX), "of MLX", "", id="MLX, renamed"),
        pytest.param(lambda p: folder_with(p, "lora-f16.gguf"), "GGUF file of llama.cpp", "PEFT folder", id="GGUF"),
        pytest.param(
            lambda p: folder_with(p, "model.safetensors", "config.json", config=False),
            "'model.safetensors' is a whole model",
            "base prepare",
            id="a full fine-tune",
        ),
        pytest.param(
            lambda p: folder_with(
                p, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", config=False
            ),
            "'model-00001-of-00002.safetensors' is a whole model",
            "",
            id="one in shards",
        ),
        pytest.param(
            lambda p: folder_with(p, "pytorch_model.bin", config=False), "a whole model", "", id="pickled one"
        ),
        pytest.param(
            lambda p: folder_with(p, "pytorch_lora_weights.safetensors", config=False, tensors=DIFFUSERS),
            "LoRA of an image model",
            "language models",
            id="Diffusers",
        ),
        pytest.param(
            lambda p: folder_with(p, "style.safetensors", config=False, tensors=KOHYA),
            "'style.safetensors' is a LoRA of an image model",
            "",
            id="kohya",
        ),
        pytest.param(
            lambda p: folder_with(p, "final.safetensors", tensors=lora_tensors()),
            "The LoRA weights are in 'final.safetensors'",
            f"Rename it to {WEIGHTS}",
            id="another name",
        ),
        pytest.param(
            lambda p: folder_with(p, "x.safetensors"), "contains no LoRA weights, but x.weight", "", id="other"
        ),
        pytest.param(
            lambda p: folder_with(p, "global_step60/zero_pp_rank_0_mp_rank_00_model_states.pt"),
            "state of several processes, 'global_step60'",
            "zero_to_fp32.py",
            id="DeepSpeed alone",
        ),
        pytest.param(
            lambda p: folder_with(p, "pytorch_model_fsdp_0/__0_0.distcp"), "processes", "merge-weights", id="FSDP alone"
        ),
    ],
)
def test_a_foreign_format_is_named(tmp_path: Path, make: Callable[[Path], Path], message: str, fix: str) -> None:
    finding = refusal(make(tmp_path / "foreign"))
    assert message in finding.message
    assert fix in finding.fix


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, WEIGHTS])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LFS, "is a Git LFS pointer"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("<html>not found</html>", "is a web page"),
        ("\n<!DOCTYPE html>", "is a web page"),
        ('<?xml version="1.0"?><Error>', "is a web page"),
        ("GGUF", "is a GGUF file"),
    ],
)
def test_a_file_that_did_not_arrive_is_named(peft_folder: Path, name: str, text: str, message: str) -> None:
    (peft_folder / name).write_text(text)
    assert f"{name!r} {message}" in refusal(peft_folder).message


@pytest.mark.parametrize("name", ["lora.gguf", "adapter_model.safetensors", "adapter.pt", "notes.txt"])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    finding = refusal(tmp_path / name)
    assert f"{name!r} is " in finding.message
    assert "Give the folder" in finding.fix


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = folder_with(tmp_path / "odd")
    make(folder / "lora.safetensors")
    make(folder / WEIGHTS)
    assert f"has no {WEIGHTS}" in str(lint_folder(folder, base_folder=None, max_lora_rank=16)[-1])


def output_folder(root: Path, steps: tuple[int, ...] = (20, 100, 60)) -> Path:
    for step in steps:
        write_peft_folder(root / f"checkpoint-{step}")
    (root / "runs").mkdir()
    return root


def test_a_parent_folder_names_the_latest_checkpoint(tmp_path: Path) -> None:
    finding = refusal(output_folder(tmp_path / "out"))
    assert (
        "'out' is not an adapter, but contains 3: 'checkpoint-20', 'checkpoint-60', 'checkpoint-100'."
        in finding.message
    )
    assert finding.fix == f"Give the latest, '{tmp_path / 'out' / 'checkpoint-100'}'."


@pytest.mark.parametrize("place", ["", "checkpoint-100"])
def test_and_the_best_one_where_the_trainer_knows(tmp_path: Path, place: str) -> None:
    out = output_folder(tmp_path / "out")
    state = {"best_model_checkpoint": "/elsewhere/out/checkpoint-60"}
    (out / place / "trainer_state.json").write_text(json.dumps(state))
    assert refusal(out).fix.endswith(f"or the best, '{out / 'checkpoint-60'}'.")


@pytest.mark.parametrize(
    "state", ["", "[]", '{"best_model_checkpoint": 7}', '{"best_model_checkpoint": "checkpoint-9"}', "[" * 100_000]
)
def test_a_trainers_state_that_says_nothing_is_passed_over(tmp_path: Path, state: str) -> None:
    out = output_folder(tmp_path / "out")
    (out / "trainer_state.json").write_text(state)
    assert refusal(out).fix == f"Give the latest, '{out / 'checkpoint-100'}'."


def test_the_latest_may_be_the_best(tmp_path: Path) -> None:
    out = output_folder(tmp_path / "out")
    (out / "trainer_state.json").write_text('{"best_model_checkpoint": "out\\\\checkpoint-100"}')
    assert refusal(out).fix == f"Give the latest and best, '{out / 'checkpoint-100'}'."


def test_a_repository_in_a_hub_cache_names_its_snapshot(tmp_path: Path) -> None:
    repository = tmp_path / "models--ada--medical"
    for revision in ("b", "a"):
        write_peft_folder(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a")
    assert refusal(repository).fix == f"Give the latest, '{repository / 'snapshots' / 'a'}'."


def test_an_adapter_with_checkpoints_below_it_is_taken(tmp_path: Path) -> None:
    out = output_folder(write_peft_folder(tmp_path / "out"))
    findings = lint_folder(out, base_folder=None, max_lora_rank=16)
    assert {finding.level for finding in findings} == {"warning"}


@pytest.mark.parametrize("num_bytes", [0x280, 0x220])
def test_a_headers_length_is_not_taken_for_another_format(peft_folder: Path, num_bytes: int) -> None:
    """As bytes it may begin like a pickle, or with white space."""
    content = (peft_folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip().ljust((end - 8) // 256 * 256 + num_bytes % 256 + 256)
    (peft_folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    assert lint_folder(peft_folder, base_folder=None, max_lora_rank=16) == []
