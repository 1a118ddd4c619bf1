"""What the fork server (forks.py) imports for the engine processes; this module is the one it preloads."""

import atexit
import gc
import os
import shutil
import signal
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

import setproctitle

MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "serve.engine.plugin",
    "serve.engine.scheduler",
    "serve.engine.worker",
)


def _end() -> None:
    """Remove the socket, which a killed API server leaves behind, and exit without finalization.

    nanobind would report the frozen objects as leaks.
    """
    address = vars(forkserver._forkserver)["_forkserver_address"]
    if address is not None:
        shutil.rmtree(Path(address).parent, ignore_errors=True)
    os._exit(0)


signal.signal(signal.SIGINT, signal.SIG_IGN)  # CPython's fork server ignores it only after the imports
for _name in MODULES:
    import_module(_name)
setproctitle.getproctitle()  # it finds argv now; it cannot once a forked process has changed its environment
gc.collect()
gc.freeze()  # or the first collection in a forked process would copy every page
atexit.register(_end)
