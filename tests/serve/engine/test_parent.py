"""Processes of the engine end with the one that started them, also by SIGKILL: real processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loadtest.bench.test_children import ended
from tests.tracked_files import ROOT

# Three generations, as server, engine and worker; each says its id.
GENERATIONS = """
import multiprocessing, os, sys, time
from serve.engine.parent import end_with_parent

def live(generation, method):
    end_with_parent()
    end_with_parent()
    if generation < 2:
        multiprocessing.get_context(method).Process(target=live, args=(generation + 1, method)).start()
    print(os.getpid(), flush=True)
    while BUSY:
        pass
    time.sleep(600)

if __name__ == "__main__":
    live(0, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_of_a_killed_process_end_with_it(tmp_path: Path, method: str, *, is_busy: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(GENERATIONS.replace("BUSY", str(is_busy)))
    command = [sys.executable, str(program), method]
    environment = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(3)]
        assert process.pid in pids
        process.send_signal(signal.SIGKILL)
        assert ended(pids)


def test_a_process_that_nobody_started_so_does_not_watch() -> None:
    code = "import threading; from serve.engine.parent import end_with_parent; end_with_parent()"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(threading.active_count())"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "1"
