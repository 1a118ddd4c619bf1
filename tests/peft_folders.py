"""Tiny PEFT folders and base folders on disk, and the drafts and manifests that belong to them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapters.bases import base_digest, base_files, chat_template_sha256, tokenizer_sha256, weights_sha256
from adapters.lint.peft_folder import read_lora_spec
from adapters.scores import score_of
from adapters.store.evaluation_records import Evaluation
from adapters.store.manifest import MANIFEST_FILE, BaseManifest, BaseRef, ManifestDraft

HIDDEN, RANK = 8, 2
MODULES = tuple(f"model.layers.{layer}.self_attn.{part}" for layer in (0, 1) for part in ("q_proj", "v_proj"))
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "init_lora_weights": True,
}
BASE = BaseRef(name="tiny", digest="d" * 64, quantization="none")


def lora_tensors(modules: tuple[str, ...] = MODULES, rank: int = RANK, seed: int = 0) -> dict[str, torch.Tensor]:
    """PEFT's tensors: A (rank, HIDDEN) and B (HIDDEN, rank) a module."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"base_model.model.{module}.{side}.weight": torch.randn(shape, generator=generator)
        for module in modules
        for side, shape in (("lora_A", (rank, HIDDEN)), ("lora_B", (HIDDEN, rank)))
    }


def dora_tensors(modules: tuple[str, ...] = MODULES, seed: int = 0) -> dict[str, torch.Tensor]:
    """As `lora_tensors`, with a magnitude (HIDDEN,) a module."""
    generator = torch.Generator().manual_seed(seed + 1)
    return lora_tensors(modules, seed=seed) | {
        f"base_model.model.{module}.lora_magnitude_vector": torch.rand(HIDDEN, generator=generator) + 0.5
        for module in modules
    }


def write_peft_folder(folder: Path, *, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    """A valid PEFT folder, but for `tensors` and the changed keys of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(lora_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text("# A tiny adapter\n")
    return folder


def write_soft_prompt(folder: Path, embeddings: torch.Tensor, **changes: Any) -> Path:
    """A PEFT folder of prompt tuning, as PEFT's save_pretrained writes it, but for the changed keys."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": embeddings.shape[0],
        "token_dim": embeddings.shape[-1],
        "num_transformer_submodules": 1,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    save_file({"prompt_embeddings": embeddings}, folder / "adapter_model.safetensors")
    return folder


def write_base_folder(folder: Path, modules: tuple[str, ...] = MODULES) -> Path:
    """A prepared base with a (HIDDEN, HIDDEN) layer a module; no tokenizer that works."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"{module}.weight": torch.zeros(HIDDEN, HIDDEN) for module in modules}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / MANIFEST_FILE).write_text(_base_manifest(folder).model_dump_json())
    return folder


EVALUATION = Evaluation(
    metric="exact_match",
    base=score_of(1, 8),
    adapter=score_of(7, 8),
    base_valid_format=score_of(2, 8),
    valid_format=score_of(8, 8),
)


def draft_for(folder: Path, name: str = "medical", **changes: Any) -> ManifestDraft:
    return ManifestDraft(**{"name": name, "base": BASE, "lora": read_lora_spec(folder)} | changes)


def _base_manifest(folder: Path) -> BaseManifest:
    files = base_files(folder)
    weights, tokenizer = weights_sha256(files), tokenizer_sha256(files)
    template = chat_template_sha256(folder)
    return BaseManifest(
        name=folder.name,
        source="test",
        quantization="none",
        storage="plain",
        architecture="LlamaForCausalLM",
        num_parameters=len(MODULES) * HIDDEN * HIDDEN,
        max_position_embeddings=64,
        weights_sha256=weights,
        tokenizer_sha256=tokenizer,
        chat_template_sha256=template,
        digest=base_digest(weights, tokenizer, template, "none"),
        files=files,
        libraries={},
        created_at="2026-11-21T00:00:00+00:00",
    )
