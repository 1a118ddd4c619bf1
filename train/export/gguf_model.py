"""Architectures in GGUF: hyperparameters, tensor names, and the row order of query and key weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from train.errors import ExportError

_LLAMA, _QWEN2, _QWEN3 = MODEL_ARCH.LLAMA, MODEL_ARCH.QWEN2, MODEL_ARCH.QWEN3
_ARCHITECTURES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
}
_ROPE_TYPES = ("default", "llama3")


@dataclass(frozen=True)
class GgufModel:
    """A base's configuration as llama.cpp needs it."""

    arch: MODEL_ARCH
    config: PreTrainedConfig

    @property
    def arch_name(self) -> str:
        return MODEL_ARCH_NAMES[self.arch]

    def name(self, tensor: str) -> str:
        """GGUF's name of one of the base's tensors.

        Raises:
            ExportError: The architecture has no such tensor in GGUF.
        """
        name = self._names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"The base's tensor {tensor!r} has no name in GGUF's architecture {self.arch_name!r}.")
        return str(name)

    def ordered(self, tensor: str, weight: Tensor) -> Tensor:
        """The rows of a weight, of a bias or of LoRA's B in llama.cpp's order.

        transformers rotates the first half of a head's rows with the second, llama.cpp's `llama` each row with its
        neighbour.
        """
        num_heads = self._num_rotated_heads(tensor)
        if num_heads is None:
            return weight
        halves = weight.reshape(num_heads, 2, len(weight) // num_heads // 2, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape)

    def write_hyperparameters(self, writer: GGUFWriter) -> None:
        config = self.config
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(self._context_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(self._head_dim)
        writer.add_value_length(self._head_dim)
        writer.add_rope_dimension_count(self._head_dim)
        writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)

    @cached_property
    def rope_factors(self) -> Tensor | None:
        """By what Llama 3 divides each rotary frequency; None: by nothing."""
        if self.config.rope_parameters["rope_type"] == "default":
            return None
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self.config, torch.device("cpu"))
        exponents = torch.arange(0, self._head_dim, 2, dtype=torch.float32) / self._head_dim
        plain = float(self.config.rope_parameters["rope_theta"]) ** -exponents
        return plain / scaled

    @cached_property
    def _names(self) -> Any:
        return get_tensor_name_map(self.arch, self.config.num_hidden_layers)

    @property
    def _head_dim(self) -> int:
        given = getattr(self.config, "head_dim", None)
        return int(given or (self.config.hidden_size // self.config.num_attention_heads))

    @property
    def _context_length(self) -> int:
        """Within the sliding window, if there is one: llama.cpp attends to everything here."""
        window = getattr(self.config, "sliding_window", None)
        longest: int = self.config.max_position_embeddings
        return min(longest, window or longest)

    def _num_rotated_heads(self, tensor: str) -> int | None:
        if self.arch != _LLAMA:
            return None
        layer = tensor.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        heads: int | None = {
            "q_proj": self.config.num_attention_heads,
            "k_proj": self.config.num_key_value_heads,
        }.get(layer)
        return heads


def read_gguf_model(base_folder: Path) -> GgufModel:
    """The architecture of a base.

    Raises:
        ExportError: It is not one that is converted.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(base_folder)
    name = (config.architectures or ["none"])[0]
    if name not in _ARCHITECTURES:
        raise ExportError(
            f"The base's architecture {name} is not converted to GGUF; {', '.join(_ARCHITECTURES)} are. "
            "Use `lorikeet export merge` and llama.cpp's own converter."
        )
    if (rope_type := config.rope_parameters["rope_type"]) not in _ROPE_TYPES:
        raise ExportError(f"The base's rope_type is {rope_type!r}; only {_ROPE_TYPES} are converted to GGUF.")
    if (activation := getattr(config, "hidden_act", "silu")) != "silu":
        raise ExportError(f"The base's hidden_act is {activation!r}; GGUF's {name} always has 'silu'.")
    return GgufModel(_ARCHITECTURES[name], config)
