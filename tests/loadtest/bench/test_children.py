"""Children end with the one who started them, whatever ended that one: real processes and signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from loadtest.bench.children import child
from tests.tracked_files import ROOT

# A command that starts one itself, says both ids, and outlasts any test.
SLOW = """
import os, subprocess, sys, time
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), inner.pid, flush=True)
time.sleep(600)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
# A shell that starts tests in the background has its children ignore SIGINT.
HOLDER = f"""
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from loadtest.bench.children import child
with child([sys.executable, "-c", {SLOW!r}]) as process:
    process.wait()
"""


def is_running(pid: int) -> bool:
    """Whether a process still runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(pids: list[int], timeout_s: float = 30) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_running, pids))


@contextmanager
def holder() -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A process that holds a child, and the ids of that and of what it started."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        try:
            yield process, pids
        finally:
            for pid in (process.pid, *pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_what_was_started_ends_with_a_signal_to_the_parent(number: signal.Signals) -> None:
    with holder() as (process, pids):
        assert len(pids) == 2
        process.send_signal(number)
        process.wait(30)
        assert not any(map(is_running, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
@pytest.mark.slow
def test_a_killed_parent_leaves_no_child() -> None:
    with holder() as (process, (pid, _)):
        process.kill()
        assert ended([pid])


def test_the_end_of_the_block_ends_the_whole_group() -> None:
    with child([sys.executable, "-c", SLOW], output=None) as process:
        pass
    assert process.returncode == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_a_child_that_ignores_its_signal_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loadtest.bench.children._END_TIMEOUT_S", 0.2)
    with (
        (tmp_path / "log").open("w") as log,
        child([sys.executable, "-c", STUBBORN], output=log) as process,
    ):
        while "ready" not in (tmp_path / "log").read_text():
            time.sleep(0.02)
    assert process.returncode == -signal.SIGKILL


def test_a_command_keeps_its_exit_code_and_environment() -> None:
    code = "import os, sys; sys.exit(int(os.environ['CODE']))"
    with child([sys.executable, "-c", code], environment={"CODE": "7"}) as process:
        assert process.wait(30) == 7
