"""A process and all that it has started, from Linux's `/proc`: what they use."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.errors import TargetError

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """Of a tree of processes.

    Attributes:
        cpu_s: User and system time since their start, seconds; of those that have ended and were waited for too.
        resident_bytes: Sum of their resident sets: what two of them share counts twice.
    """

    cpu_s: float
    resident_bytes: int


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    usage: Usage


def tree_usage(pid: int, proc: Path = PROC) -> Usage:
    """What a process and its descendants have used until now.

    Raises:
        TargetError: There is no such process.
    """
    processes = {process.pid: process for process in _processes(proc)}
    if pid not in processes:
        raise TargetError(f"The server's process {pid} has ended. Its log says why.")
    usages = [process.usage for process in processes.values() if _is_within(process, pid, processes)]
    return Usage(sum(usage.cpu_s for usage in usages), sum(usage.resident_bytes for usage in usages))


class CpuMeter:
    """CPU seconds that a server used while the block ran."""

    def __init__(self, pid: int) -> None:
        self.cpu_s = 0.0
        self._pid = pid

    def __enter__(self) -> Self:
        self._start_s = tree_usage(self._pid).cpu_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.cpu_s = tree_usage(self._pid).cpu_s - self._start_s


def _processes(proc: Path) -> Iterator[_Process]:
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            content = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        # man 5 proc, from the third field on: the second is the name, which may hold spaces and brackets.
        fields = content.rpartition(")")[2].split()
        cpu_s = sum(map(int, fields[11:15])) / _TICKS_PER_S
        yield _Process(int(folder.name), int(fields[1]), Usage(cpu_s, int(fields[21]) * _PAGE_BYTES))


def _is_within(process: _Process, root: int, processes: dict[int, _Process]) -> bool:
    """Whether a process is `root`, or was started by it or by one of its own."""
    at: _Process | None = process
    while at is not None and at.pid != root:
        at = processes.get(at.parent)
    return at is not None
