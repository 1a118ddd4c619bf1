"""A server that is killed takes its engine with it, and the next one finds the way free: the real engine, kill -9."""

import os
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from config.home import Home
from loadtest.bench.server import running_server
from tests.live_server import ANSWERS, chat, write_serve_config

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_a_killed_server_leaves_no_process_and_the_next_one_works(live_home: Home, tmp_path: Path) -> None:
    config = write_serve_config(tmp_path, "orphans")
    with running_server(config, live_home.root, tmp_path / "killed.log") as server:
        answered = httpx.post(f"{server.url}/v1/chat/completions", json=chat("colours"), timeout=120)
        assert answered.json()["choices"][0]["message"]["content"] == ANSWERS["colours"]
        family = psutil.Process(server.pid).children(recursive=True)
        names = " ".join(process.name() for process in family)
        assert "EngineCor" in names
        assert "Worker" in names
        os.kill(server.pid, signal.SIGKILL)
        # Before the block ends: it kills what is left.
        _, alive = psutil.wait_procs(family, 20)
        assert [process.name() for process in alive] == []
    with running_server(config, live_home.root, tmp_path / "next.log") as server:
        answered = httpx.post(f"{server.url}/v1/chat/completions", json=chat("shapes"), timeout=120)
        assert answered.json()["choices"][0]["message"]["content"] == ANSWERS["shapes"]
        assert "Traceback" not in (tmp_path / "next.log").read_text()
