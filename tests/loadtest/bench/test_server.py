"""Starting and ending a child server: what happens when it does not come up."""

import sys
from pathlib import Path

import pytest

from loadtest.bench.server import ServerError, StartingServer, free_port, running_server, starting_command


@pytest.mark.slow
def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("base: nothing-prepared\n")
    with (
        pytest.raises(ServerError, match=r"exit code 1(.|\n)*There is no base 'nothing-prepared'"),
        running_server(config, tmp_path / "home", tmp_path / "serve.log"),
    ):
        pass


@pytest.mark.slow
def test_a_server_that_never_gets_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(f"#!/bin/sh\necho still starting\nexec {sys.executable} -c 'import time; time.sleep(60)'\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    with (
        pytest.raises(ServerError, match=r"not ready after 1 s(.|\n)*still starting"),
        running_server(tmp_path / "serve.yaml", tmp_path, tmp_path / "serve.log", timeout_s=1),
    ):
        pass


WAITS = """
import http.server, pathlib, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.02)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.slow
def test_something_else_can_run_while_a_server_starts(tmp_path: Path) -> None:
    port, go = free_port(), tmp_path / "go"
    command = [sys.executable, "-c", WAITS, str(port), str(go)]
    with starting_command(command, f"http://127.0.0.1:{port}", "/ready", tmp_path / "log") as server:
        server.check()
        assert server.running is None
        go.touch()
        running = server.wait_until_ready()
        assert running.ready_s > 0
        assert running == server.running


def check_for_ever(server: StartingServer) -> None:
    while True:
        server.check()


@pytest.mark.slow
def test_a_server_that_ends_while_it_starts_is_reported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no memory')"]
    with (
        pytest.raises(ServerError, match=r"exit code 1(.|\n)*no memory"),
        starting_command(command, "http://127.0.0.1:9", "/ready", tmp_path / "log") as server,
    ):
        check_for_ever(server)
