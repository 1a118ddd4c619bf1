"""The worker beside the server: started, named when it ends, and ended with the server however that ends."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from config.home import Home
from config.load import load_serve
from config.serve import ServeConfig
from serve.jobs.worker_process import WorkerEndedError, WorkerProcess
from tests.eventually import eventually

pytestmark = pytest.mark.anyio

CONFIG = ServeConfig(base="tiny", port=8123)

WAITS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open({file!r}, "w") as file:
    file.write(str(os.getpid()))
time.sleep(600)
"""
STUBBORN = WAITS.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")


def process(tmp_path: Path, code: str, end_s: float = 20.0) -> WorkerProcess:
    file = str(tmp_path / "pid")
    return WorkerProcess(Home(tmp_path), CONFIG, command=[sys.executable, "-c", code.format(file=file)], end_s=end_s)


async def pid_of(tmp_path: Path) -> int:
    path = tmp_path / "pid"
    await eventually(lambda: path.exists() and path.read_text(), timeout_s=60)
    return int(path.read_text())


@pytest.mark.slow
async def test_a_worker_reads_the_configuration_of_its_server(tmp_path: Path) -> None:
    with pytest.raises(WorkerEndedError):
        await process(tmp_path, "pass").run()
    assert load_serve(tmp_path / "jobs" / "serve.yaml") == CONFIG


async def test_a_worker_that_ends_is_an_error_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(WorkerEndedError, match="exit code 7"):
        await process(tmp_path, "raise SystemExit(7)").run()


@pytest.mark.parametrize(("code", "end_s"), [(WAITS, 20.0), (STUBBORN, 0.3)])
async def test_a_worker_ends_with_the_server(tmp_path: Path, code: str, end_s: float) -> None:
    task = asyncio.create_task(process(tmp_path, code, end_s).run())
    pid = await pid_of(tmp_path)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
async def test_a_worker_ends_where_the_server_is_killed(tmp_path: Path) -> None:
    code = "; ".join(
        [
            "import asyncio, sys",
            "from pathlib import Path",
            "from config.home import Home",
            "from config.serve import ServeConfig",
            "from serve.jobs.worker_process import WorkerProcess",
            "config, command = ServeConfig(base='tiny'), [sys.executable, '-c', sys.argv[1]]",
            "asyncio.run(WorkerProcess(Home(Path(sys.argv[2])), config, command=command).run())",
        ]
    )
    server = subprocess.Popen([sys.executable, "-c", code, WAITS.format(file=str(tmp_path / "pid")), str(tmp_path)])
    pid = await pid_of(tmp_path)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    await eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 30)
