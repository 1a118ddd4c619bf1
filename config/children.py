"""Commands that end when the process that runs them ends, also where that is killed."""

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
    """The same command, ended by SIGTERM with this process where the system can do that.

    To Linux, the end of the thread that started a process is its parent's end: start it in one that lasts.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-ISc", _BOUND, str(os.getpid()), *command]
