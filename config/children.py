"""Run commands that end together with their parent process, even if it is killed."""

import os
import sys
from collections.abc import Sequence

# Replaces itself by the command, after asking Linux for a SIGTERM at the parent's death (prctl's PR_SET_PDEATHSIG). A
# parent that died earlier sends none, so the parent's id is compared, too.
_BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def bound(command: Sequence[str]) -> list[str]:
    """Wrap a command so that it gets SIGTERM when this process ends (Linux only).

    On Linux this happens when the starting thread ends, so start it from a thread that lives long enough.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-ISc", _BOUND, str(os.getpid()), *command]
