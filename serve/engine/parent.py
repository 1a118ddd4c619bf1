"""Processes that end with the one that started them, also where that is killed and can tell nobody."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

_watching: set[int] = set()  # process ids: a fork copies it


def end_with_parent() -> None:
    """End this process, if `multiprocessing` started it, as soon as the one that did has ended.

    The parent holds the other end of a pipe, which closes with it however it ends. Parents that end in order end their
    children first. Called more than once in a process, it does no more.
    """
    parent = multiprocessing.parent_process()
    if parent is None or os.getpid() in _watching:
        return
    _watching.add(os.getpid())
    threading.Thread(target=_end_when_closed, args=(parent.sentinel,), name="parent", daemon=True).start()


def _end_when_closed(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)  # SIGTERM would be answered by Python, which may be waiting for the parent
