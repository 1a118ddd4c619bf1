"""A server of our own for a while: started as a child process, waited for, and ended by its id."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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
    pid: int


@contextmanager
def running_server(
    config_file: Path,
    home: Path,
    log_file: Path,
    timeout_s: float = 600,
    *,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """`lorikeet serve` on a free loopback port, until the block ends.

    Args:
        environment: Instead of this process's own.

    Raises:
        ServerError: It ended, or was not ready in time; the message ends with its last lines.
    """
    port = free_port()
    words = ["serve", str(config_file), "--home", str(home), "--port", str(port)]
    command = [sys.executable, "-P", "-m", "lorikeet", *words]  # -P: a train.py of the working folder stays out
    url = f"http://127.0.0.1:{port}"
    with running_command(command, url, "/ready", log_file, timeout_s, environment=environment) as server:
        yield server


@contextmanager
def running_command(
    command: Sequence[str],
    url: str,
    ready_path: str,
    log_file: Path,
    timeout_s: float = 600,
    *,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Any server, until the block ends, be it by SIGTERM; it is ready when `ready_path` answers 200.

    Args:
        environment: Instead of this process's own.

    Raises:
        ServerError: It ended, or was not ready in time; the message ends with its last lines.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with _interrupted_by_sigterm(), log_file.open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait_until_ready(process, f"{url}{ready_path}", log_file, timeout_s)
            yield RunningServer(url, log_file, time.perf_counter() - start, process.pid)
        finally:
            _end(process)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_lines(log_file: Path, count: int = 20) -> str:
    return "\n".join(log_file.read_text(errors="replace").splitlines()[-count:])


def _wait_until_ready(process: "subprocess.Popen[bytes]", ready_url: str, log_file: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_ready(ready_url):
        if process.poll() is not None:
            raise ServerError(f"The server ended with exit code {process.returncode}.\n{last_lines(log_file)}")
        if time.monotonic() > deadline:
            raise ServerError(f"The server was not ready after {timeout_s:.0f} s.\n{last_lines(log_file)}")
        time.sleep(0.5)


def _is_ready(ready_url: str) -> bool:
    try:
        return httpx.get(ready_url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, and does not leave behind what it started. Of a main thread's blocks."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
