"""CPU time and memory of a tree of processes, as `/proc` has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.bench.processes import CpuMeter, tree_usage
from loadtest.errors import TargetError

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
WORKING = "import time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass\n"
PARENT = (
    f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {WORKING!r}]).wait()\n"
    "print('ended', flush=True)\ntime.sleep(60)\n"
)


def write_stat(
    proc: Path, pid: int, parent: int, *, name: str = "python", ticks: tuple[int, ...] = (0, 0, 0, 0), pages: int = 0
) -> None:
    """A process as man 5 proc describes it; `ticks` are utime, stime, cutime and cstime."""
    fields = ["S", parent, *[0] * 9, *ticks, *[0] * 6, pages, *[0] * 28]
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")


def test_a_tree_counts_its_own_and_nobody_else(tmp_path: Path) -> None:
    write_stat(tmp_path, 10, 1, ticks=(1, 2, 3, 4), pages=5)
    write_stat(tmp_path, 11, 10, name="VLLM (a) worker", ticks=(10, 0, 0, 0), pages=50)
    write_stat(tmp_path, 12, 11, ticks=(0, 100, 0, 0), pages=500)
    write_stat(tmp_path, 13, 1, ticks=(7, 7, 7, 7), pages=7000)
    usage = tree_usage(10, tmp_path)
    assert usage.cpu_s == pytest.approx(120 / TICKS_PER_S)
    assert usage.resident_bytes == 555 * PAGE_BYTES


def test_what_is_no_process_and_what_ends_meanwhile_is_passed_over(tmp_path: Path) -> None:
    write_stat(tmp_path, 10, 1, pages=5)
    (tmp_path / "meminfo").write_text("")
    (tmp_path / "99").mkdir()
    assert tree_usage(10, tmp_path).resident_bytes == 5 * PAGE_BYTES


def test_a_process_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="process 10 has ended"):
        tree_usage(10, tmp_path)


@pytest.mark.slow
def test_the_kernel_tells_of_children_that_work_and_have_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            with CpuMeter(process.pid) as meter:
                assert process.stdout.readline() == "ended\n"
            assert tree_usage(process.pid).resident_bytes > 1 << 20
        finally:
            process.kill()
    assert 0.09 < meter.cpu_s < 2


def test_a_meter_does_not_hide_why_its_block_failed() -> None:
    with pytest.raises(ZeroDivisionError), CpuMeter(os.getpid()):
        raise ZeroDivisionError
