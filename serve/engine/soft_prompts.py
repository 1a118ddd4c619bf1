"""Soft prompts in vLLM's worker: embeddings of virtual tokens, one set an adapter slot, in any batch.

vLLM (0.32) has prompt embeddings a request, which leave the compiled graph and carry no version. Here the server puts
placeholders in front of a prompt (prepended.py), and the embedding layer writes the version's virtual tokens over what
it has looked up for them. A placeholder is told by its place, not by its id: virtual tokens are the first ones of a
sequence whose adapter is a soft prompt. So they are part of the sequence for all that follows: the KV cache, the prefix
cache (whose keys hold the version's name), chunked prefill.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.lint.config import MAX_VIRTUAL_TOKENS, is_soft_prompt
from adapters.lint.peft_folder import CONFIG_FILE, PROMPT_TENSOR, WEIGHTS_FILE
from serve.engine.replace import Replacement, install

_PROBED_IDS = 16
_ROUNDING = 0.02  # of a product in bfloat16, several times over


@dataclass(frozen=True)
class SoftPrompts:
    """The soft prompts in a worker's adapter slots, and what tells its embedding layer where they go.

    Attributes:
        embeddings: (slots, `MAX_VIRTUAL_TOKENS`, hidden size), in the model's type.
        counts: (slots,) int64, virtual tokens of each slot; 0: none.
        positions: Of vLLM's model runner: place of each of the batch's tokens in its sequence.
        slots: Of vLLM's LoRA arithmetic: adapter slot of each of the batch's tokens.
        factor: What the model multiplies its embeddings by afterwards, as Gemma does; PEFT's are multiplied already.
    """

    embeddings: Tensor
    counts: Tensor
    positions: Tensor
    slots: Tensor
    factor: float = 1.0

    def set(self, slot: int, prompt: Tensor) -> None:
        """Put a soft prompt (n, hidden size) into a slot."""
        self.embeddings[slot, : len(prompt)] = (prompt.float() / self.factor).to(self.embeddings.dtype)
        self.counts[slot] = len(prompt)

    def clear(self, slot: int) -> None:
        self.counts[slot] = 0


def num_virtual_tokens(folder: Path) -> int:
    """Number of virtual tokens of a PEFT folder that passed the lint; 0 for other adapters."""
    config = _soft_prompt_config(folder)
    return int(config["num_virtual_tokens"]) if config else 0


def read_soft_prompt(folder: Path) -> Tensor | None:
    """The virtual tokens (n, hidden size) of a PEFT folder that passed the lint; None for another kind of adapter."""
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS_FILE)[PROMPT_TENSOR] if _soft_prompt_config(folder) else None


def _soft_prompt_config(folder: Path) -> dict[str, Any] | None:
    """None where the folder holds no soft prompt, as a staged one, which has no configuration."""
    path = folder / CONFIG_FILE
    config: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return config if is_soft_prompt(config) else None


def serve_soft_prompts() -> None:
    """Replace vLLM's methods; done twice, it does no more."""
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    import serve.kernels.ops  # noqa: F401 # registers the operator

    install(
        Replacement(LoRAModelRunnerMixin, "load_lora_model", _load_lora_model),
        Replacement(LoRAModelManager, "activate_adapter", _activate_adapter),
        Replacement(VocabParallelEmbedding, "forward", _embed),
    )


def soft_prompts_of(manager: Any) -> SoftPrompts | None:
    """Of vLLM's `LoRAModelManager`; None where the model's embeddings take no virtual tokens."""
    prompts: SoftPrompts | None = manager.__dict__.get("lorikeet_soft_prompts")
    return prompts


def _load_lora_model(stock: Any, runner: Any, model: Any, vllm_config: Any, device: Any) -> Any:
    layer, positions = _input_embedding(model), _positions_of(runner)
    factor = _factor(model, layer) if layer is not None else None
    loaded = stock(runner, model, vllm_config, device)
    manager = runner.lora_manager._adapter_manager
    if layer is None or positions is None or factor is None or len(manager.punica_wrapper_mapping) != 1:
        return loaded
    (punica,) = manager.punica_wrapper_mapping.values()
    shape, dtype = (manager.lora_slots, MAX_VIRTUAL_TOKENS, layer.embedding_dim), vllm_config.model_config.dtype
    manager.lorikeet_soft_prompts = layer.lorikeet_soft_prompts = SoftPrompts(
        torch.zeros(shape, dtype=dtype, device=device),
        torch.zeros(manager.lora_slots, dtype=torch.int64, device=device),
        positions,
        punica._token_lora_indices,
        factor,
    )
    return loaded


def _activate_adapter(stock: Any, manager: Any, lora_id: int) -> Any:
    is_new = stock(manager, lora_id)
    prompts = soft_prompts_of(manager)
    if is_new and prompts is not None:
        slot = manager.lora_index_to_id.index(lora_id)
        prompt = getattr(manager._registered_adapters[lora_id], "lorikeet_soft_prompt", None)
        prompts.clear(slot) if prompt is None else prompts.set(slot, prompt)
    return is_new


def _embed(stock: Any, layer: Any, input_: Tensor) -> Tensor:
    output: Tensor = stock(layer, input_)
    prompts = layer.__dict__.get("lorikeet_soft_prompts")
    if prompts is not None:
        torch.ops.lorikeet.put_virtual_tokens(
            output.view(-1, output.shape[-1]), prompts.positions, prompts.slots, prompts.embeddings, prompts.counts
        )
    return output


def _input_embedding(model: Any) -> Any:
    """The model's one embedding of tokens; None where that is not clear."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    found = {id(m): m for m in model.modules() if isinstance(m, VocabParallelEmbedding)}.values()
    layers = [layer for layer in found if not isinstance(layer, ParallelLMHead)]
    return layers[0] if len(layers) == 1 else None


def _positions_of(runner: Any) -> Tensor | None:
    """The buffer of the runner, or of vLLM's second one; None where places are not plain numbers (M-RoPE)."""
    if getattr(runner, "uses_mrope", False) or getattr(runner, "uses_xdrope_dim", 0):
        return None
    positions = getattr(runner, "positions", None)
    if positions is None:
        positions = getattr(getattr(runner, "input_buffers", None), "positions", None)
    return positions if isinstance(positions, Tensor) and positions.dim() == 1 else None


@torch.inference_mode()
def _factor(model: Any, layer: Any) -> float | None:
    """What the model multiplies an embedding by before its first layer sees it; None where it does anything else.

    A factor in the model's own `forward` (Granite) is transformers' as well: PEFT's virtual tokens get it there, too.
    """
    embed = getattr(model, "embed_input_ids", None)
    if embed is None:
        return None
    ids = torch.arange(_PROBED_IDS, device=layer.weight.device)
    looked_up, given = layer(ids).float(), embed(ids).float()
    factor = ((given * looked_up).sum() / looked_up.square().sum()).item()
    return factor if factor and torch.allclose(given, looked_up * factor, rtol=_ROUNDING) else None
