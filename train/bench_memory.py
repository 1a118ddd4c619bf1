"""Peak memory of a process that measures itself."""

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Largest resident memory of this process since its program began, bytes.

    Linux's `VmHWM` (proc_pid_status(5)). `ru_maxrss` will not do there: it survives `exec`, so a small process that a
    large one started begins with the large one's peak (getrusage(2)). It is what other systems have.
    """
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_bytes_of_children() -> int:
    """Largest resident memory of the children that have ended, bytes; at least what this process had at their start."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
