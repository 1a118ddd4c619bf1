"""docs/bring-your-data.md, block by block, as a newcomer would run it."""

import json
import os
import re
import subprocess
import sys

import httpx
import pytest

from adapters.store.manifest import Manifest
from tests.live_server import LiveServer
from tests.tracked_files import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PAGE = (ROOT / "docs" / "bring-your-data.md").read_text()
TEAMS = {"billing", "shipping", "technical"}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def tickets(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What the page's commands have published; `lorikeet` is this checkout's, its server the session's."""
    folder = tmp_path_factory.mktemp("newcomer")
    program = folder / "bin" / "lorikeet"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m lorikeet "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "LORIKEET_HOME": str(live.home.root),
        "PYTHONPATH": str(ROOT),
    }
    for block in blocks("bash"):
        command = ["sh", "-e", "-c", block]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return live.store.manifest(live.store.resolve("tickets"))


def test_the_adapter_is_better_than_its_base(tickets: Manifest) -> None:
    assert tickets.evaluation is not None
    assert tickets.evaluation.adapter.value > tickets.evaluation.base.value + 0.3


def test_the_pages_question_is_answered_by_the_adapter(live: LiveServer, tickets: Manifest) -> None:
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=json.loads(blocks("json")[0]), timeout=60).json()
    assert answer["model"] == tickets.lora_name
    assert answer["choices"][0]["message"]["content"].strip() in TEAMS
