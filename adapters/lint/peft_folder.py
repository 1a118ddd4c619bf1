"""Read a PEFT folder: its configuration, and its LoRA pairs from the safetensors header."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapters.errors import InvalidAdapterError
from adapters.lint.config import is_soft_prompt, peft_type_of
from adapters.lint.tensors import TensorHeader, read_headers
from adapters.store.manifest import LoraSpec
from adapters.store.strict_json import load_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
DORA_FILE = "dora.safetensors"
"""Of a published version: what serving DoRA needs of the base (adapters/dora.py)."""

PROMPT_TENSOR = "prompt_embeddings"
"""PEFT's name of a soft prompt: (num_virtual_tokens, hidden size). Of P-tuning it is what the prompt encoder gave."""

PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
"""DoRA's, one number per output of a layer: the last part of the tensor's name."""

# vLLM skips these copies of the base's own embeddings, which PEFT saves beside an adapted embedding.
_BASE_COPIES = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


@dataclass(frozen=True)
class LoraModule:
    """The LoRA pair of one layer of the base; `name` is that layer's full name.

    A has the shape (rank, in_features) and B (out_features, rank); DoRA adds a magnitude (out_features,).
    """

    name: str
    lora_a: TensorHeader
    lora_b: TensorHeader
    is_embedding: bool
    magnitude: TensorHeader | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features), the shape of the layer's change."""
        return self.lora_b.shape[0], self.lora_a.shape[1]

    @property
    def headers(self) -> tuple[TensorHeader, ...]:
        """Of all its tensors."""
        return (self.lora_a, self.lora_b, *([self.magnitude] if self.magnitude else []))


@dataclass(frozen=True)
class LoraTensors:
    """Contents of a weights file: complete pairs, incomplete pairs, and tensors other than LoRA."""

    modules: tuple[LoraModule, ...]
    halves: tuple[str, ...]
    foreign: tuple[str, ...]


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a PEFT folder.

    Raises:
        InvalidAdapterError: The file is missing or does not hold a JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InvalidAdapterError(
            f"{folder.name!r} has no {CONFIG_FILE}. Give the folder that PEFT's save_pretrained wrote."
        )
    try:
        config = load_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterError(f"{CONFIG_FILE} of {folder.name!r} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise InvalidAdapterError(f"{CONFIG_FILE} of {folder.name!r} must hold a JSON object.")
    return config


def read_tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """The tensors of a PEFT folder by name.

    Raises:
        InvalidAdapterError: No weights file, or a torn one.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InvalidAdapterError(f"{folder.name!r} has no {WEIGHTS_FILE}. Save it with safe_serialization=True.")
    return read_headers(path)


def read_lora_tensors(folder: Path) -> LoraTensors:
    """The LoRA pairs of a PEFT folder.

    Raises:
        InvalidAdapterError: No weights file, or a torn one.
    """
    return lora_tensors(read_tensor_headers(folder))


def lora_tensors(headers: Mapping[str, TensorHeader]) -> LoraTensors:
    """Group tensors into LoRA pairs by vLLM's naming rules."""
    pairs: dict[str, dict[str, TensorHeader]] = {}
    foreign = []
    for name, header in sorted(headers.items()):
        module, side = parse_name(name)
        if side:
            pairs.setdefault(module, {})[side] = header
        elif not name.endswith(_BASE_COPIES):
            foreign.append(name)
    modules = [_pair(module, sides) for module, sides in pairs.items() if {"A", "B"} <= sides.keys()]
    halves = [module for module, sides in pairs.items() if not {"A", "B"} <= sides.keys()]
    return LoraTensors(tuple(modules), tuple(halves), tuple(foreign))


def is_reward_model(config: dict[str, Any]) -> bool:
    """Whether a configuration has a score as a layer saved whole; the task alone is often set wrongly."""
    return config.get("task_type") == "SEQ_CLS" and bool(config.get("modules_to_save"))


def read_lora_spec(folder: Path) -> LoraSpec:
    """The LoRA section of a manifest, read from a PEFT folder.

    Raises:
        InvalidAdapterError: The folder's configuration or weights cannot be read.
    """
    config = read_adapter_config(folder)
    if is_soft_prompt(config):
        return _soft_prompt_spec(folder, config)
    modules = read_lora_tensors(folder).modules
    try:
        return LoraSpec(
            lora_r=config.get("r", 8),
            lora_alpha=config.get("lora_alpha", 8),
            use_rslora=bool(config.get("use_rslora")),
            use_dora=bool(config.get("use_dora")),
            target_modules=tuple(sorted({module.name.rpartition(".")[2] for module in modules})),
            num_modules=len(modules),
            task="SEQ_CLS" if is_reward_model(config) else "CAUSAL_LM",
        )
    except ValidationError as error:
        raise InvalidAdapterError(f"{CONFIG_FILE} of {folder.name!r}: {error.errors()[0]['msg']}.") from error


def _soft_prompt_spec(folder: Path, config: Mapping[str, Any]) -> LoraSpec:
    header = read_tensor_headers(folder).get(PROMPT_TENSOR)
    if header is None:
        raise InvalidAdapterError(f"{WEIGHTS_FILE} of {folder.name!r} has no tensor {PROMPT_TENSOR!r}. Save it again.")
    return LoraSpec(
        peft_type="P_TUNING" if peft_type_of(config) == "P_TUNING" else "PROMPT_TUNING",
        num_virtual_tokens=header.shape[0] if header.shape else 0,
    )


def parse_name(name: str) -> tuple[str, str]:
    """Full name of the base's layer and "A", "B" or "magnitude"; ("", "") for any other tensor."""
    parts = name.removeprefix(PREFIX).split(".")
    if parts[-1] == MAGNITUDE and len(parts) > 1:
        return ".".join(parts[:-1]), "magnitude"
    if parts[-1] == "weight" and len(parts) > 2 and parts[-2] in ("lora_A", "lora_B"):
        return ".".join(parts[:-2]), parts[-2][-1]
    if parts[-1] in ("lora_embedding_A", "lora_embedding_B") and len(parts) > 1:
        return ".".join(parts[:-1]), parts[-1][-1]
    return "", ""


def _pair(module: str, sides: dict[str, TensorHeader]) -> LoraModule:
    is_embedding = "lora_embedding_" in sides["A"].name
    return LoraModule(module, sides["A"], sides["B"], is_embedding, sides.get("magnitude"))
