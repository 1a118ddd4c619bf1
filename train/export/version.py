"""The version to export: its verified files, its base, and its LoRA pairs with PEFT's scaling."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.bases import find_base, verify_base
from adapters.dora import SCALE
from adapters.lint.config import MAX_LORA_RANK, check_adapter_config, is_soft_prompt, scaling_of
from adapters.lint.peft_folder import DORA_FILE, WEIGHTS_FILE, LoraModule, read_adapter_config, read_lora_tensors
from adapters.lint.tensors import read_headers
from adapters.reference import Target
from adapters.store.manifest import BaseManifest, Manifest
from adapters.store.store import AdapterStore
from config.home import Home
from train.errors import ExportError
from train.export.tensor_files import read_tensor


@dataclass(frozen=True)
class Version:
    """A version of the store, verified, and the folder of the base that it was trained on."""

    target: Target
    folder: Path
    manifest: Manifest
    base: BaseManifest
    base_folder: Path


@dataclass(frozen=True)
class LoraPair:
    """The change of one layer, `scaling * B A`: A is (rank, in_features), B is (out_features, rank), in float32.

    Attributes:
        row_scale: (out_features,) what DoRA multiplies the rows of the changed weight by; None: plain LoRA.
        is_transposed: The layer stores its weight as (in_features, out_features): an embedding or a Conv1D.
    """

    module: str
    lora_a: Tensor
    lora_b: Tensor
    scaling: float
    is_transposed: bool
    is_embedding: bool
    row_scale: Tensor | None = None

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Two matrices whose product, scaled, is the change of the stored weight."""
        return (self.lora_a.T, self.lora_b.T) if self.is_transposed else (self.lora_b, self.lora_a)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the stored weight."""
        left, right = self.factors
        return left.shape[0], right.shape[1]


def open_version(home: Home, reference: str) -> Version:
    """Find a version and its base, and verify the files of both.

    Raises:
        AdapterNotFoundError: No such version.
        IntegrityError: A file of the version differs from its manifest.
        BaseNotFoundError: No prepared base has the digest that it was trained on.
        InvalidBaseError: A file of the base differs from its manifest.
    """
    store = AdapterStore(home.adapters)
    target = store.resolve(reference)
    manifest = store.verify(target)
    folder = home.bases / find_base(home.bases, manifest.base, str(target)).name
    return Version(target, store.folder(target), manifest, verify_base(folder), folder)


def read_pairs(version: Version, *, takes_dora: bool = False) -> dict[str, LoraPair]:
    """The LoRA pairs of a version by the full name of the base's layer, with PEFT's ranks, alphas and rsLoRA.

    Raises:
        ExportError: The adapter is more than LoRA pairs, so its change cannot be written as one matrix per layer.
    """
    config = read_adapter_config(version.folder)
    tensors = read_lora_tensors(version.folder)
    _check_plain(version.target, config, tensors.foreign)
    if config.get("use_dora") and not takes_dora:
        raise ExportError(
            f"{str(version.target)!r} is DoRA, which rescales the base's rows: llama.cpp has no adapter for it, and it "
            "cannot be combined. `lorikeet export merge` writes base and adapter as one model."
        )
    load = partial(_load_pair, version.folder / WEIGHTS_FILE, config)
    return {module.name: load(module) for module in tensors.modules}


def _check_plain(target: Target, config: Mapping[str, Any], foreign: tuple[str, ...]) -> None:
    if is_soft_prompt(config):
        raise ExportError(
            f"{str(target)!r} is a soft prompt: its virtual tokens stand in front of the prompt and change no weight, "
            "so there is nothing to merge, combine or convert. Use `lorikeet export peft`."
        )
    errors = [f for f in check_adapter_config(dict(config), max_lora_rank=MAX_LORA_RANK) if f.level == "error"]
    reasons = [finding.message for finding in errors]
    if foreign:
        reasons.append(f"{len(foreign)} tensors are not LoRA pairs, such as {foreign[0]!r}.")
    if reasons:
        raise ExportError(f"{str(target)!r} is not a plain LoRA and cannot be exported: {' '.join(reasons)}")


def _load_pair(path: Path, config: dict[str, Any], module: LoraModule) -> LoraPair:
    with path.open("rb") as file:
        lora_a, lora_b = (read_tensor(file, header).to(torch.float32) for header in (module.lora_a, module.lora_b))
    return LoraPair(
        module=module.name,
        lora_a=lora_a,
        lora_b=lora_b,
        scaling=scaling_of(module.name, config),
        is_transposed=module.is_embedding or bool(config.get("fan_in_fan_out")),
        is_embedding=module.is_embedding,
        row_scale=_row_scale(path.with_name(DORA_FILE), module) if config.get("use_dora") else None,
    )


def _row_scale(path: Path, module: LoraModule) -> Tensor:
    with path.open("rb") as file:
        return read_tensor(file, read_headers(path)[f"{module.name}.{SCALE}"])
