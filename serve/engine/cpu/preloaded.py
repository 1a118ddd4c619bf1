"""Imported in the process that the engine's are forked from (forks.py): what each of them needs, and takes seconds."""

import atexit
import gc
import os
from importlib import import_module

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

for _name in MODULES:
    import_module(_name)
setproctitle.getproctitle()  # it looks for the title's place now, before a forked process changes its environment
gc.collect()
gc.freeze()  # or the first search for garbage in a forked process copies the pages of all
atexit.register(os._exit, 0)  # without freeing what is frozen, of which libraries would print lists
