"""A base made from another one: all its weights trained, an adapter merged into it, or weights removed."""

import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import PreTrainedModel

from adapters.bases import base_digest, base_files, chat_template_sha256, tokenizer_sha256, weights_sha256
from adapters.fingerprint import FINGERPRINT_FILE
from adapters.lint.tensors import read_headers
from adapters.store.manifest import MANIFEST_FILE, BaseLineage, BaseManifest
from train.base.prepare import LIBRARIES, library_versions
from train.folders import staged_folder

_OF_MODEL = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", FINGERPRINT_FILE)


def next_name(bases: Path, stem: str) -> str:
    """The first free name of `medical-1`, `medical-2`…"""
    taken = {path.name for path in bases.glob(f"{stem}-*")}
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def write_derived_base(
    folder: Path,
    model: PreTrainedModel,
    parent: BaseManifest,
    lineage: BaseLineage,
    parent_folder: Path,
    write_more: Callable[[Path, str], None] = lambda folder, digest: None,
) -> BaseManifest:
    """Write a base with the model's weights in bf16 and the parent's tokenizer; complete or not at all.

    Args:
        write_more: Writes further files into the folder; gets the new base's digest.
    """

    def write_weights(staging: Path) -> None:
        model.config.use_cache = True
        model.to(torch.bfloat16).save_pretrained(staging)  # type: ignore[arg-type]  # the stubs want a model

    return write_weights_as_base(folder, write_weights, parent, lineage, parent_folder, write_more)


def write_weights_as_base(
    folder: Path,
    write_weights: Callable[[Path], None],
    parent: BaseManifest,
    lineage: BaseLineage,
    parent_folder: Path,
    write_more: Callable[[Path, str], None],
) -> BaseManifest:
    """As `write_derived_base`; `write_weights` writes weights and configuration of the model."""
    with staged_folder(folder) as staging:
        write_weights(staging)
        for entry in parent.files:
            if not any(Path(entry.path).match(pattern) for pattern in _OF_MODEL):
                shutil.copyfile(parent_folder / entry.path, staging / entry.path)
        files = base_files(staging)
        weights, tokenizer = weights_sha256(files), tokenizer_sha256(files)
        digest = base_digest(weights, tokenizer, chat_template_sha256(staging), "none")
        write_more(staging, digest)
        manifest = parent.model_copy(
            update={
                "name": folder.name,
                "quantization": "none",
                "storage": "plain",
                "num_parameters": _num_parameters(staging),
                "weights_sha256": weights,
                "digest": digest,
                "files": base_files(staging),
                "libraries": library_versions(*LIBRARIES),
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "lineage": lineage,
            }
        )
        # Written last: its presence marks the folder complete.
        (staging / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _num_parameters(folder: Path) -> int:
    headers = (header for path in folder.glob("*.safetensors") for header in read_headers(path).values())
    return sum(math.prod(header.shape) for header in headers)
