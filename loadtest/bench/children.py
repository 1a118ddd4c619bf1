"""Child processes that end with the block that started them, or through Linux if this process is killed."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from config.children import bound
from config.signals import interrupted_by_sigterm

_END_TIMEOUT_S = 60.0

Child = subprocess.Popen[bytes]


@contextmanager
def child(
    command: Sequence[str],
    *,
    output: IO[str] | None = None,
    is_asked: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """Run a command until the block ends, be it by SIGTERM; nothing that it started is left then.

    It has a session of its own, so that Ctrl-C ends it through the end of the block alone: by SIGTERM, which a shell's
    background jobs do not ignore, and after a minute by SIGKILL. Call this in the main thread;
    to Linux, the end of the thread that started a process is its parent's end.

    Args:
        output: Takes stdout and stderr; by default they are ours.
        is_asked: Its stdin and stdout are pipes to us; `output` takes stderr alone.
        environment: Instead of this process's own.
    """
    with interrupted_by_sigterm():
        process = subprocess.Popen(
            bound(command),
            stdin=subprocess.PIPE if is_asked else None,
            stdout=subprocess.PIPE if is_asked else output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: Child) -> None:
    try:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # What it started itself and left, e.g. the engine of a server that was killed.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with suppress(BrokenPipeError):
                pipe.close()
