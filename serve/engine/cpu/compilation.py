"""torch.compile of models with LoRA on a CPU, which vLLM (0.32) turns off, and a cache of it that can be read again.

vLLM's own LoRA arithmetic cannot be traced there; ours is one operator a layer (serve/kernels/ops.py). Compiled code is
about 1.7 times as fast as eager code with 16 streams, and twice as fast with one; docs/performance.md has the figures.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch

from serve.engine import soft_prompts
from serve.engine.cpu import attention, linear
from serve.engine.replace import Replacement, install


def allow_compilation() -> None:
    """Let vLLM compile models with LoRA, and find again what it has compiled; done twice, it does no more."""
    from vllm.config.model import ModelConfig
    from vllm.platforms.cpu import CpuPlatform

    install(
        Replacement(CpuPlatform, "check_and_update_config", _check_without_lora),
        Replacement(torch.compiler, "load_compiled_function", _load_compiled_function),
        Replacement(ModelConfig, "compute_hash", _compute_hash),
    )


def _check_without_lora(stock: Any, platform: Any, vllm_config: Any) -> None:
    """Keep from vLLM's platform that the model has LoRA: it would turn compilation off."""
    lora_config, vllm_config.lora_config = vllm_config.lora_config, None
    try:
        stock(platform, vllm_config)
    finally:
        vllm_config.lora_config = lora_config


def _load_compiled_function(stock: Any, *args: Any, **kwargs: Any) -> Any:
    """Let vLLM read what it has saved: 0.32 finishes each function with a method that those for a CPU do not have.

    vllm/compilation/decorators.py, `_try_load_aot_compiled_fn`; without it, each start compiles again.
    """
    loaded = stock(*args, **kwargs)
    compiled = loaded._artifacts.compiled_fn
    if not hasattr(compiled, "finalize_loading"):
        compiled.finalize_loading = _nothing_to_finish
    return loaded


def _compute_hash(stock: Any, model_config: Any) -> str:
    """Let bases of one architecture share compiled code, wherever they lie: the weights are arguments of the code.

    vLLM counts the base's path as part of what was compiled (vllm/config/model.py, `compute_hash`). What we change in
    the code counts instead: vLLM does not see it.
    """
    path, model_config.model = model_config.model, ""
    try:
        return f"{stock(model_config)}-{_ours()}-{linear.can_choose()}-{sorted(linear.PRODUCTS.left_to_vllm)}"
    finally:
        model_config.model = path


@cache
def _ours() -> str:
    """Of what replaces vLLM's own methods in compiled code."""
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (attention, linear, soft_prompts))
    return hashlib.sha256(sources).hexdigest()


def _nothing_to_finish(vllm_config: Any) -> None:
    """The artifact of a CPU holds its code."""
