"""Imported in the process that the engine's are forked from (forks.py): what each of them needs, and takes seconds."""

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
    """Remove the socket, which a killed server has left, and end without freeing what is frozen.

    Libraries would print lists of that.
    """
    address = vars(forkserver._forkserver)["_forkserver_address"]
    if address is not None:
        shutil.rmtree(Path(address).parent, ignore_errors=True)
    os._exit(0)


signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python ignores it once all is imported
for _name in MODULES:
    import_module(_name)
setproctitle.getproctitle()  # it looks for the title's place now, before a forked process changes its environment
gc.collect()
gc.freeze()  # or the first search for garbage in a forked process copies the pages of all
atexit.register(_end)
