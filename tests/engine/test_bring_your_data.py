"""docs/bring-your-data.md, block by block, as a newcomer would run it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.bench.server import running_server
from tests.live_server import write_serve_config
from tests.tracked_files import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.exhaustive]

PAGE = (ROOT / "docs" / "bring-your-data.md").read_text()
TEAMS = {"billing", "shipping", "technical"}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of the page's commands were run; `lorikeet` is this checkout's."""
    folder = tmp_path_factory.mktemp("newcomer")
    program = folder / "bin" / "lorikeet"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m lorikeet "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "LORIKEET_HOME": str(folder / "var"),
        "PYTHONPATH": str(ROOT),
    }
    for block in blocks("bash"):
        command = ["sh", "-e", "-c", block]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    config = write_serve_config(folder, cpu_compile=False)
    with running_server(config, folder / "var", folder / "server.log") as server:
        yield server.url


def test_the_adapter_is_better_than_its_base(folder: Path) -> None:
    store = AdapterStore(Home(folder / "var").adapters)
    evaluation = store.manifest(store.resolve("tickets")).evaluation
    assert evaluation is not None
    assert evaluation.adapter.value > evaluation.base.value + 0.3


def test_the_pages_question_is_answered_by_the_adapter(url: str) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json=json.loads(blocks("json")[0]), timeout=60).json()
    assert answer["choices"][0]["message"]["content"].strip() in TEAMS
