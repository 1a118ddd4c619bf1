"""deploy/systemd/lorikeet.service, read by systemd itself."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from config.load import load_serve
from tests.deploy.commands import unknown_words
from tests.tracked_files import ROOT

UNIT = ROOT / "deploy" / "systemd" / "lorikeet.service"
MOST_EXPOSED = 2.0
"""On systemd's scale of 0 to 10; 1.7 on 2026-11-29."""

systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, of Debian's systemd"
)


def values(key: str) -> list[str]:
    return re.findall(rf"(?m)^{key}=(.*)$", UNIT.read_text())


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@systemd
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """In a copy whose program and page exist here."""
    program, page = tmp_path / "lorikeet", ROOT / "docs" / "operate.md"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / "lorikeet.service"
    text = UNIT.read_text().replace(shlex.split(values("ExecStart")[0])[0], str(program))
    copy.write_text(text.replace(values("Documentation")[0], f"file:{page}"))
    finished = analyze("verify", str(copy))
    assert (finished.returncode, finished.stderr) == (0, "")


@systemd
def test_the_server_can_do_little_beside_serving():
    finished = analyze("security", "--offline=true", str(UNIT))
    exposure = re.search(r"exposure level for lorikeet\.service: (\S+)", finished.stdout)
    assert exposure is not None, finished.stdout + finished.stderr
    assert float(exposure[1]) <= MOST_EXPOSED


def test_it_runs_a_command_of_ours():
    assert unknown_words(shlex.split(values("ExecStart")[0])) == []


def test_it_has_time_to_drain():
    assert float(values("TimeoutStopSec")[0]) > load_serve(ROOT / "config" / "serve.yaml").drain_timeout_s


def test_only_the_server_itself_is_told_to_end():
    assert values("KillMode") == ["mixed"]


def test_an_engine_that_is_killed_does_not_end_the_server():
    assert values("OOMPolicy") == ["continue"]


def test_the_state_folder_is_the_one_that_systemd_makes():
    assert "LORIKEET_HOME=/var/lib/" + values("StateDirectory")[0] in values("Environment")
    assert values("StateDirectoryMode") == ["0700"]


def test_every_command_of_its_head_comment_is_ours():
    commands = re.findall(r"\.venv/bin/(lorikeet .*)", UNIT.read_text().partition("[Unit]")[0])
    assert commands
    assert [unknown_words(command.split()) for command in commands] == [[]] * len(commands)
