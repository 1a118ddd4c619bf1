"""Lorikeet's vLLM plugin: the entry point `vllm.general_plugins` loads it in every vLLM process.

On a CPU it puts `GroupedPunicaWrapper` in the place of vLLM's own; on a GPU it changes nothing.
"""

from typing import Any

_WRAPPER = "serve.engine.punica.GroupedPunicaWrapper"


def register() -> None:
    """Install the plugin; called more than once in a process, it does the same again."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        platform: Any = type(current_platform)
        platform.get_punica_wrapper = classmethod(lambda _: _WRAPPER)
        # The first request for log-probabilities would stop every stream for 35 s, while Inductor compiles a
        # function of one line (vllm/v1/sample/ops/logprobs.py).
        platform.simple_compile_backend = "eager"
