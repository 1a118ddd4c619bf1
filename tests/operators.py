"""Our C++ operators for tests: only a missing compiler or instruction set skips, never a failed build."""

from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from serve.kernels.build import has_compiler, load_kernels


def require_operators() -> None:
    """Load them.

    Raises:
        pytest.fail.Exception: There is a compiler, and they cannot be built or loaded all the same.
    """
    if not has_compiler():
        pytest.skip("there is no C++ compiler")
    if not load_kernels():
        pytest.fail("The operators cannot be built, though there is a C++ compiler: `python -m serve.kernels.build`.")


def require_avx2() -> None:
    """Skip where torch itself knows of no AVX2; our own operators may be wrong about it."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this CPU has no AVX2")


def require_instructions(name: str, available: Collection[str]) -> None:
    """Skip where the CPU lacks an instruction set; fail where it has it and the operators do not offer it.

    AMX is offered only where the kernel also permits it.
    """
    if name in available:
        return
    assert name not in _cpu_flags() or name.startswith("amx"), f"this CPU has {name}, the operators offer {available}"
    pytest.skip(f"this CPU has no {name}")


def _cpu_flags() -> frozenset[str]:
    file = Path("/proc/cpuinfo")
    flags = frozenset(file.read_text().split()) if file.exists() else frozenset()
    return flags | {"avx512"} if "avx512f" in flags else flags
