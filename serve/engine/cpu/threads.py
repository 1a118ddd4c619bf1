"""How the engine uses a CPU: which cores compute, and by which OpenMP runtime.

vLLM keeps one core free for its scheduler and preloads GNU's OpenMP (platforms/cpu.py). With few cores the free
one is a large part of the machine, and the scheduler has little to do while a step computes; Intel's runtime, which
comes with vLLM's CPU package, lets waiting threads sleep, so that the two can share. Measured: docs/engine-cpu.md.
"""

import os
import sys
from collections.abc import Iterable, MutableMapping
from pathlib import Path

_FEW_CORES = 4
_TOPOLOGY = Path("/sys/devices/system/cpu")


def set_cpu_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let all of few cores compute, where Intel's OpenMP is installed; what the user has set stays.

    Call before the engine's processes start: they inherit it.
    """
    runtime = Path(sys.prefix) / "lib" / "libiomp5.so"
    cores = own_cores()
    is_set = "VLLM_CPU_OMP_THREADS_BIND" in environment or "omp" in environment.get("LD_PRELOAD", "")
    if is_set or not runtime.is_file() or not 2 <= len(cores) <= _FEW_CORES:
        return
    environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    environment["LD_PRELOAD"] = ":".join(filter(None, (environment.get("LD_PRELOAD"), str(runtime))))


def has_few_cores() -> bool:
    """Whether one core more or less is a large part of what this process may use."""
    return len(own_cores()) <= _FEW_CORES


def own_cores() -> tuple[int, ...]:
    """The physical cores that this process may use; none, where the system does not tell."""
    return physical_cores(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()


def physical_cores(logical: Iterable[int], topology: Path = _TOPOLOGY) -> tuple[int, ...]:
    """One logical CPU of each physical core; every one, where the kernel does not tell."""
    first_of: dict[str, int] = {}
    for number in sorted(logical):
        siblings = topology / f"cpu{number}" / "topology" / "thread_siblings_list"
        key = siblings.read_text().strip() if siblings.is_file() else str(number)
        first_of.setdefault(key, number)
    return tuple(first_of.values())
