"""Starting and ending a child server: what happens when it does not come up."""

import sys
from pathlib import Path

import pytest

from loadtest import server
from loadtest.server import ServerError, running_server


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("base: nothing-prepared\n")
    with (
        pytest.raises(ServerError, match=r"exit code 1(.|\n)*There is no base 'nothing-prepared'"),
        running_server(config, tmp_path / "home", tmp_path / "serve.log"),
    ):
        pass


def test_a_server_that_never_gets_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(f"#!/bin/sh\necho still starting\nexec {sys.executable} -c 'import time; time.sleep(60)'\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(server.sys, "executable", str(sleeper))
    with (
        pytest.raises(ServerError, match=r"not ready after 1 s(.|\n)*still starting"),
        running_server(tmp_path / "serve.yaml", tmp_path, tmp_path / "serve.log", timeout_s=1),
    ):
        pass
