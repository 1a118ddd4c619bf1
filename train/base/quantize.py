"""Quantization of a base with bitsandbytes, and a workaround that keeps 4-bit layers trainable on a CPU."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig, PreTrainedModel

from adapters.bases import weights_folder
from adapters.store.manifest import Quantization, Storage


def bnb_config(quantization: Quantization) -> BitsAndBytesConfig | None:
    """bitsandbytes settings of QLoRA; the library's defaults (fp4, fp32 compute, no double quantization) differ."""
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantization == "int8" else None


def choose_storage(
    quantization: Quantization, wanted: Literal["auto", "dequantized", "bitsandbytes"], *, has_cuda: bool
) -> Storage:
    """Storage format of the weights.

    `auto`: bitsandbytes on CUDA, where it is fast; otherwise dequantized once. A model that was quantized by another
    program stays as it is.
    """
    if quantization == "none":
        return "plain"
    if quantization not in ("nf4", "int8"):
        return "dequantized" if wanted == "dequantized" else "prequantized"
    if wanted == "auto":
        return "bitsandbytes" if has_cuda else "dequantized"
    return wanted


def quantize_folder(folder: Path, quantization: Quantization, storage: Storage) -> PreTrainedModel:
    """Load a plain Hugging Face folder and quantize it; for `dequantized`, convert the result back to bf16."""
    model = load_causal_lm(folder, quantization_config=bnb_config(quantization))
    return model.dequantize(torch.bfloat16) if storage == "dequantized" else model


def load_causal_lm(source: str | Path, *, dtype: torch.dtype = torch.bfloat16, **options: Any) -> PreTrainedModel:
    """Load a causal LM (bf16 by default, on the GPU if any) that can be trained in every storage format.

    Args:
        source: A folder as a path, which may be a prepared base, or what transformers loads.
    """
    source = weights_folder(source) if isinstance(source, Path) else source
    if torch.cuda.is_available():
        options.setdefault("device_map", {"": 0})
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype, **options)
    keep_gradient_flow(model)
    keep_attention_cap(model)
    return model


def load_reward_model(source: str | Path, *, dtype: torch.dtype = torch.bfloat16, **options: Any) -> PreTrainedModel:
    """Load a base with one output, the score of a text, instead of its output layer; the score of a new head is 0."""
    if torch.cuda.is_available():
        options.setdefault("device_map", {"": 0})
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        str(source), dtype=dtype, num_labels=1, **options
    )
    head = model.get_submodule("score")
    assert isinstance(head, torch.nn.Linear)
    torch.nn.init.zeros_(head.weight)
    keep_gradient_flow(model)
    keep_attention_cap(model)
    return model


def keep_gradient_flow(model: torch.nn.Module) -> int:
    """Stop `Linear4bit` from repacking its weights for AVX512-BF16; returns how many layers were guarded.

    On such CPUs the first forward under `eval()` repacks each layer permanently, and later training steps get no
    gradient through it. The only sign is a UserWarning; the loss still falls.
    """
    from bitsandbytes.nn.modules import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def keep_attention_cap(model: PreTrainedModel) -> None:
    """Use eager attention for models with capped attention scores (Gemma 2), as vLLM applies the cap too.

    torch's `scaled_dot_product_attention`, the default, has no cap: transformers silently leaves it out.
    """
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
