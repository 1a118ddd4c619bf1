"""A temporary server: started as a child process, awaited, and stopped by its process id."""

import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtest.bench.children import Child, child

_ASK_EVERY_S = 0.5


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
    command, url = _serve_command(config_file, home)
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
    with starting_command(command, url, ready_path, log_file, timeout_s, environment=environment) as server:
        yield server.wait_until_ready()


@contextmanager
def starting_server(
    config_file: Path, home: Path, log_file: Path, timeout_s: float = 600
) -> Iterator["StartingServer"]:
    """`running_server`, but the block runs while it starts."""
    command, url = _serve_command(config_file, home)
    with starting_command(command, url, "/ready", log_file, timeout_s) as server:
        yield server


@contextmanager
def starting_command(
    command: Sequence[str],
    url: str,
    ready_path: str,
    log_file: Path,
    timeout_s: float = 600,
    *,
    environment: Mapping[str, str] | None = None,
) -> Iterator["StartingServer"]:
    """`running_command`, but the block runs while it starts."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("w") as log, child(command, output=log, environment=environment) as process:
        server = StartingServer(process, url, f"{url}{ready_path}", log_file, timeout_s)
        try:
            yield server
        finally:
            server.forget()


class StartingServer:
    """A server that may not be ready yet; a thread asks it until it is."""

    def __init__(self, process: Child, url: str, ready_url: str, log_file: Path, timeout_s: float) -> None:
        self.url, self.log_file = url, log_file
        self._process, self._ready_url, self._timeout_s = process, ready_url, timeout_s
        self._start_s = time.perf_counter()
        self._ready_s: float | None = None
        self._is_over = threading.Event()
        self._waiter = threading.Thread(target=self._ask_until_ready, daemon=True)
        self._waiter.start()

    @property
    def running(self) -> RunningServer | None:
        """None until it is ready."""
        if self._ready_s is None:
            return None
        return RunningServer(self.url, self.log_file, self._ready_s, self._process.pid)

    def check(self) -> None:
        """Raises ServerError where it has ended, or is not ready in time."""
        if self._process.poll() is not None:
            raise ServerError(
                f"The server ended with exit code {self._process.returncode}.\n{last_lines(self.log_file)}"
            )
        if self._ready_s is None and time.perf_counter() - self._start_s > self._timeout_s:
            raise ServerError(f"The server was not ready after {self._timeout_s:.0f} s.\n{last_lines(self.log_file)}")

    def wait_until_ready(self) -> RunningServer:
        """Raises ServerError where it has ended, or is not ready in time."""
        while (running := self.running) is None:
            self.check()
            self._waiter.join(_ASK_EVERY_S)
        return running

    def forget(self) -> None:
        """Ask no more."""
        self._is_over.set()
        self._waiter.join()

    def _ask_until_ready(self) -> None:
        while not _is_ready(self._ready_url):
            if self._is_over.wait(_ASK_EVERY_S):
                return
        self._ready_s = time.perf_counter() - self._start_s


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def last_lines(log_file: Path, count: int = 20) -> str:
    return "\n".join(log_file.read_text(errors="replace").splitlines()[-count:])


def _serve_command(config_file: Path, home: Path) -> tuple[list[str], str]:
    """`lorikeet serve` on a free loopback port, and its URL."""
    port = free_port()
    words = ["serve", str(config_file), "--home", str(home), "--port", str(port)]
    # -P: a train.py of the working folder stays out.
    return [sys.executable, "-P", "-m", "lorikeet", *words], f"http://127.0.0.1:{port}"


def _is_ready(ready_url: str) -> bool:
    try:
        return httpx.get(ready_url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
