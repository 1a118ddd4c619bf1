"""Lorikeet's vLLM plugin: the entry point `vllm.general_plugins` loads it in every vLLM process.

Adapter slots go round by turns, adapters come ready from outside the engine, and what is not finite stays with its own
request; on a CPU it also takes over the arithmetic of LoRA, which stays vLLM's on a GPU. Each process ends with the one
that started it.
"""

import os
from typing import Any, Literal, get_args

from serve.engine.cpu.attention import install_cpp_attention
from serve.engine.cpu.compilation import allow_compilation, fix_compile_cache_reload, share_compile_cache
from serve.engine.cpu.linear import choose_products, keep_int8_weights
from serve.engine.cpu.sampled import sample_faster
from serve.engine.cpu.threads import has_few_cores
from serve.engine.cpu.waiting import sample_at_once, sleep_instead_of_spinning
from serve.engine.finite import contain_not_finite
from serve.engine.head import map_prompts_to_adapters
from serve.engine.masks import end_costly_grammars
from serve.engine.parent import end_with_parent
from serve.engine.slots import lend_pinned_slots, take_turns
from serve.engine.withheld import withhold_logprobs
from serve.kernels.build import has_compiler, load_kernels

CpuLora = Literal["native", "torch", "stock"]
"""By our operator, by plain torch, or as vLLM does it (wrong where base and adapters share a batch)."""

CPU_LORA_VARIABLE = "LORIKEET_CPU_LORA"
"""Set for the engine's processes by `ServeConfig.cpu_lora`."""

_WRAPPER = "serve.engine.cpu.punica.GroupedPunicaWrapper"


def register() -> None:
    """Install the plugin; called more than once in a process, it does the same again."""
    from vllm.config import ModelConfig
    from vllm.platforms import current_platform

    end_with_parent()
    take_turns()
    lend_pinned_slots()
    contain_not_finite()
    end_costly_grammars()
    map_prompts_to_adapters()
    if not current_platform.is_cpu():
        _map_matrices()
        return
    platform: Any = type(current_platform)
    _leave_small_functions_eager(platform)
    sample_faster()
    sample_at_once()
    withhold_logprobs()
    keep_int8_weights()
    if has_few_cores():
        sleep_instead_of_spinning()
    if cpu_lora() == "native" and load_kernels():
        install_cpp_attention()
        choose_products()
        if has_compiler():
            allow_compilation(platform)
            fix_compile_cache_reload()
            share_compile_cache(ModelConfig)
    if cpu_lora() != "stock":
        platform.get_punica_wrapper = classmethod(lambda _: _punica_wrapper())


def _leave_small_functions_eager(platform: Any) -> None:
    """Or the first request that needs one stops every stream for half a minute, while Inductor compiles a line or two.

    vLLM (0.32, platforms/interface.py) takes the model's own backend from the same attribute: that one stays.
    """
    backend = platform.get_compile_backend()
    platform.get_compile_backend = classmethod(lambda _: backend)
    platform.simple_compile_backend = "eager"


def cpu_lora() -> CpuLora:
    """What computes LoRA in this process.

    Raises:
        ValueError: The variable has another value.
    """
    value = os.environ.get(CPU_LORA_VARIABLE, "native")
    for known in get_args(CpuLora):
        if value == known:
            return known  # type: ignore[no-any-return] # one of the three
    raise ValueError(f"{CPU_LORA_VARIABLE}={value!r}; it is one of {', '.join(get_args(CpuLora))}")


def _punica_wrapper() -> str:
    """vLLM asks once, in the worker, before it makes the LoRA layers."""
    if cpu_lora() == "native" and load_kernels():
        from serve.engine.cpu import native
        from serve.kernels.ops import register_for_compilation

        register_for_compilation()
        native.install()
    else:
        _map_matrices()
    return _WRAPPER


def _map_matrices() -> None:
    from serve.engine.loading import mapped

    mapped.install(mapped.MATRICES)
