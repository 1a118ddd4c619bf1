"""A server of our own for a while: started as a child process, waited for, and ended by its id."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


class ServerError(Exception):
    """The server did not become ready."""


@dataclass(frozen=True)
class RunningServer:
    url: str
    log_file: Path
    ready_s: float


@contextmanager
def running_server(config_file: Path, home: Path, log_file: Path, timeout_s: float = 600) -> Iterator[RunningServer]:
    """`lorikeet serve` on a free loopback port, until the block ends.

    Raises:
        ServerError: It ended, or was not ready in time; the message ends with its last lines.
    """
    port = _free_port()
    words = ["serve", str(config_file), "--home", str(home), "--port", str(port)]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "lorikeet", *words], stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log_file, timeout_s)
            yield RunningServer(url, log_file, time.perf_counter() - start)
        finally:
            _end(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log_file: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_ready(url):
        if process.poll() is not None:
            raise ServerError(f"The server ended with exit code {process.returncode}.\n{_last_lines(log_file)}")
        if time.monotonic() > deadline:
            raise ServerError(f"The server was not ready after {timeout_s:.0f} s.\n{_last_lines(log_file)}")
        time.sleep(0.5)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_lines(log_file: Path, count: int = 20) -> str:
    return "\n".join(log_file.read_text(errors="replace").splitlines()[-count:])
