"""`lorikeet export merge`: the base with the adapter added to its weights, as an ordinary model folder."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.bases import weights_folder
from adapters.store.manifest import MANIFEST_FILE
from adapters.store.version_files import README_FILE
from train.errors import ExportError
from train.export.base_tensors import BaseTensors
from train.export.readme import write_readme
from train.export.tensor_files import INDEX_FILE, SHARD_BYTES, TensorPlan, write_sharded
from train.export.version import LoraPair, Version, read_pairs
from train.rounding import rounded

HEAD = "lm_head"
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_CHUNK_ROWS = 4096  # rows of a layer that are in float32 at a time
_NOT_COPIED = (MANIFEST_FILE, README_FILE, INDEX_FILE)


@dataclass(frozen=True)
class _Merged:
    """A tensor to write: the base's tensor that it is made from, and the change to add."""

    plan: TensorPlan
    source: str
    pair: LoraPair | None


def merge_version(version: Version, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write base plus adapter into an empty folder, one tensor in memory at a time.

    Raises:
        ExportError: The adapter is neither LoRA nor DoRA, or a layer of it does not exist in the base's files.
    """
    write_merged(version, folder, shard_bytes=shard_bytes)
    write_readme(version, folder, _README, library="transformers")


def write_merged(version: Version, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Weights, configuration and tokenizer of the merged model.

    Raises:
        ExportError: As `merge_version`.
    """
    tensors, pairs = BaseTensors(version.base_folder), read_pairs(version, takes_dora=True)
    merged = _plan(version, tensors, pairs)
    generator = torch.Generator().manual_seed(0)
    parts = (_merge(tensors, each, generator) for each in merged)
    write_sharded(folder, [each.plan for each in merged], parts, shard_bytes=shard_bytes)
    _copy_files(version.base_folder, folder)
    _write_config(folder, is_untied=tensors.has_tied_head and changes_vocabulary(pairs))


def add_change(weight: Tensor, pair: LoraPair, generator: torch.Generator) -> Tensor:
    """A new weight: the sum is computed in float32 and rounded once; to bfloat16 stochastically."""
    left, right = pair.factors
    merged = torch.empty_like(weight)
    for start in range(0, len(weight), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        change = torch.addmm(weight[rows].float(), left[rows], right, alpha=pair.scaling)
        if pair.row_scale is not None:
            change *= pair.row_scale if pair.is_transposed else pair.row_scale[rows, None]
        merged[rows] = rounded(change, generator) if weight.dtype == torch.bfloat16 else change.to(weight.dtype)
    return merged


def changes_vocabulary(pairs: Mapping[str, LoraPair]) -> bool:
    """Whether embedding or head get a change; tied ones then differ and must be two tensors."""
    return any(name.rpartition(".")[2] in (HEAD, *_EMBEDDINGS) for name in pairs)


def check_layers(version: Version, tensors: BaseTensors, pairs: Mapping[str, LoraPair]) -> None:
    """Check that each changed layer is a tensor of that shape in the base's files.

    Raises:
        ExportError: It is not.
    """
    shapes = {plan.name: plan.shape for plan in tensors.plans()}
    if tensors.has_tied_head:
        shapes[f"{HEAD}.weight"] = shapes[embedding_name(shapes)]
    for name, pair in pairs.items():
        found = shapes.get(f"{name}.weight")
        if found != pair.shape:
            raise ExportError(
                f"{str(version.target)!r} changes the layer {name!r} by a matrix of shape {pair.shape}; the files of "
                f"the base {version.base.name!r} have {found or 'no such layer'}. It cannot be merged."
            )


def embedding_name(names: Mapping[str, Any]) -> str:
    """Name of the input embedding's tensor."""
    return next(name for name in names if name.removesuffix(".weight").rpartition(".")[2] in _EMBEDDINGS)


def _plan(version: Version, tensors: BaseTensors, pairs: Mapping[str, LoraPair]) -> list[_Merged]:
    check_layers(version, tensors, pairs)
    merged = [_Merged(plan, plan.name, pairs.get(plan.name.removesuffix(".weight"))) for plan in tensors.plans()]
    if tensors.has_tied_head and changes_vocabulary(pairs):
        by_name = {each.source: each.plan for each in merged}
        source = by_name[embedding_name(by_name)]
        head = TensorPlan(f"{HEAD}.weight", source.dtype, source.shape)
        merged.append(_Merged(head, source.name, pairs.get(HEAD)))
    return merged


def _merge(tensors: BaseTensors, merged: _Merged, generator: torch.Generator) -> Tensor:
    weight = tensors.read(merged.source)
    return weight if merged.pair is None else add_change(weight, merged.pair, generator)


def _copy_files(base_folder: Path, folder: Path) -> None:
    for path in sorted(base_folder.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in _NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(weights_folder(base_folder) / "config.json", folder / "config.json")


def _write_config(folder: Path, *, is_untied: bool) -> None:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_bytes())
    config.pop("quantization_config", None)  # the weights are plain now
    if is_untied:
        config["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_README = (
    "A model in Hugging Face's format, made by `lorikeet export merge`: the weights of the base plus those of the "
    "adapter, for any program that loads such folders. It needs no adapter beside it."
)
