"""Lorikeet's vLLM plugin: the entry point `vllm.general_plugins` loads it, and it acts in our engine's processes only.

Pinned adapters lend their slots, adapters come ready from outside the engine, and what is not finite stays with its own
request (patches.py lists each place in vLLM). On a CPU it also takes over the arithmetic of LoRA, which stays vLLM's on
a GPU. Each process ends with the one that started it.
"""

import logging
import os
from typing import Any, Literal, get_args

from serve.engine.cpu.attention import install_cpp_attention
from serve.engine.cpu.compilation import allow_compilation
from serve.engine.cpu.forks import use_fork_server
from serve.engine.cpu.linear import choose_products, keep_int8_weights
from serve.engine.cpu.sampled import sample_faster
from serve.engine.cpu.seeds import restart_seeds
from serve.engine.cpu.threads import has_few_cores
from serve.engine.cpu.waiting import sample_at_once, sleep_instead_of_spinning
from serve.engine.finite import contain_not_finite
from serve.engine.head import map_prompts_to_adapters
from serve.engine.masks import end_costly_grammars
from serve.engine.parent import end_with_parent
from serve.engine.replace import Replacement, install, require_unchanged
from serve.engine.slots import lend_pinned_slots
from serve.engine.soft_prompts import serve_soft_prompts
from serve.kernels.build import has_compiler, load_kernels

CpuLora = Literal["native", "torch", "stock"]
"""By our operator, by plain torch, or as vLLM does it (wrong where base and adapters share a batch)."""

CPU_LORA_VARIABLE = "LORIKEET_CPU_LORA"
"""Set for the engine's processes by `ServeConfig.cpu_lora`."""

ENGINE_VARIABLE = "LORIKEET_ENGINE"
"""`1` in the processes of an engine that Lorikeet has started: the entry point is loaded wherever vLLM runs."""

_WRAPPER = "serve.engine.cpu.punica.GroupedPunicaWrapper"


def register() -> None:
    """Install ours in a process of Lorikeet's engine, and nothing in any other process that loads vLLM."""
    if os.environ.get(ENGINE_VARIABLE) == "1":
        end_with_parent()
        install_all()


def install_all() -> None:
    """Install what this machine needs; called more than once in a process, it does no more.

    Raises:
        PatchError: This vLLM's source is not what a change was written for that correct answers depend on.
    """
    from vllm.platforms import current_platform
    from vllm.v1.core.sched.scheduler import Scheduler

    from serve.engine.scheduler import OVERRIDDEN
    from serve.engine.structured import validate_without_compiling

    require_unchanged(Scheduler, *OVERRIDDEN)
    validate_without_compiling()
    lend_pinned_slots()
    contain_not_finite()
    end_costly_grammars()
    map_prompts_to_adapters()
    serve_soft_prompts()
    # It would write one line per product, and advise a package that loads compiled code from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if current_platform.is_cpu():
        _install_on_cpu()
    else:
        _map_matrices()


def _install_on_cpu() -> None:
    use_fork_server()
    _leave_small_functions_eager()
    sample_faster()
    sample_at_once()
    restart_seeds()
    keep_int8_weights()
    if has_few_cores():
        sleep_instead_of_spinning()
    if cpu_lora() == "stock":
        return
    install(Replacement(_cpu_platform(), "get_punica_wrapper", _punica_wrapper))
    if not _compute_natively():
        _map_matrices()
        return
    install_cpp_attention()
    choose_products()
    if has_compiler():
        allow_compilation()


def _compute_natively() -> bool:
    """Whether our operator computes LoRA: else the wrapper does, by torch."""
    if cpu_lora() != "native" or not load_kernels():
        return False
    from serve.engine.cpu import native
    from serve.kernels.ops import register_for_compilation

    register_for_compilation()
    return native.compute_natively()


def _cpu_platform() -> Any:
    from vllm.platforms import current_platform

    return type(current_platform)


def _leave_small_functions_eager() -> None:
    """Or the first request that needs one stops every stream for half a minute, while Inductor compiles a line or two.

    vLLM (0.32, platforms/interface.py) takes the model's own backend from the same attribute: that one stays.
    """
    platform = _cpu_platform()
    install(
        Replacement(platform, "get_compile_backend", _backend_of_the_model),
        Replacement(platform, "simple_compile_backend", "eager", is_value=True),
    )


def _backend_of_the_model(stock: Any, platform: Any) -> str:
    from vllm.platforms.interface import Platform

    return Platform.simple_compile_backend


def _punica_wrapper(stock: Any, platform: Any) -> str:
    return _WRAPPER


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


def _map_matrices() -> None:
    from serve.engine.loading import mapped, rescaled

    if rescaled.rescale_outputs():
        mapped.map_adapters(mapped.MATRICES)
