"""Ten architectures in tiny: two layers, random weights, and whatever each does to attention and logits in effect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tests.tiny_llama import tiny_tokenizer
from train.base.quantize import keep_attention_cap

# Shorter than the system prompts of the tests, so that sliding layers drop a part of it.
SLIDING_WINDOW = 16

_GEMMA = {"query_pre_attn_scalar": 32, "sliding_window": SLIDING_WINDOW, "tie_word_embeddings": True}
# Each with the options that make it differ from Llama, in sizes at which they change the loss.
ARCHITECTURES: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "mistral": (MistralConfig, {"sliding_window": SLIDING_WINDOW}),
    "gemma2": (Gemma2Config, _GEMMA | {"final_logit_softcapping": 1.0, "attn_logit_softcapping": 2.0}),
    "gemma3": (Gemma3TextConfig, _GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": (Phi3Config, {}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "granite": (
        GraniteConfig,
        {
            "logits_scaling": 4.0,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "cohere": (CohereConfig, {"logit_scale": 0.25, "tie_word_embeddings": True}),
}

MOSTLY_SLOW = [
    pytest.param(name, marks=() if name in ("llama", "gemma2", "granite") else pytest.mark.slow)
    for name in ARCHITECTURES
]
"""Parameters of a test: in the fast tests, one like Llama, one of sliding layers and caps, and one of scales."""


def tiny_model(architecture: str) -> PreTrainedModel:
    """In float32. Weights are ten times as large as usual, for random logits that a cap or a scale changes."""
    make_config, options = ARCHITECTURES[architecture]
    tokenizer = tiny_tokenizer()
    config = make_config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **({} if architecture == "gpt_neox" else {"num_key_value_heads": 1, "head_dim": 32}),
        **options,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    keep_attention_cap(model)
    return model


def write_tiny_model(folder: Path, architecture: str) -> Path:
    """A model folder as a hub has it, in bf16."""
    tiny_model(architecture).bfloat16().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
