"""The Dockerfile names nothing that does not exist. (No Docker engine is needed to know that.)"""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_group

import lorikeet

ROOT = Path(__file__).parents[2]


def instructions():
    """(keyword, rest) of each instruction, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def of_kind(keyword):
    return [rest for kind, rest in instructions() if kind == keyword]


def test_it_has_a_cpu_and_a_gpu_target_on_the_python_that_the_project_wants():
    assert [rest.split()[-1] for rest in of_kind("FROM")] == ["source", "gpu", "cpu"]
    assert of_kind("FROM")[0] == "python:3.11-slim AS source"


def test_everything_that_it_copies_exists():
    words = [word for rest in of_kind("COPY") for word in shlex.split(rest)[:-1] if not word.startswith("--")]
    assert words
    assert [word for word in words if not (ROOT / word).exists()] == []


def test_every_script_that_it_runs_exists_and_is_executable():
    scripts = [word for rest in of_kind("RUN") for word in shlex.split(rest) if word.startswith("scripts/")]
    assert scripts
    assert [script for script in scripts if not (ROOT / script).stat().st_mode & 0o100] == []


def test_a_lock_exists_for_each_device_that_it_sets_up():
    devices = re.findall(r"LORIKEET_DEVICE=(\w+)", (ROOT / "Dockerfile").read_text())
    assert sorted(devices) == ["cpu", "gpu"]
    assert [device for device in devices if not (ROOT / "requirements" / f"{device}.lock").is_file()] == []


def test_its_command_is_one_of_ours_with_a_configuration_that_exists():
    program, command, config_file, *options = json.loads(of_kind("CMD")[0])
    known = get_group(lorikeet.app).commands[command]
    assert program == "lorikeet"
    assert (ROOT / config_file).is_file()
    assert [option for option in options if option.startswith("--")] == ["--host"]
    assert "--host" in {name for parameter in known.params for name in parameter.opts}


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_the_commands_of_its_head_comment_exist(command):
    assert command in get_group(lorikeet.app).commands


def test_what_is_big_or_private_stays_out_of_the_image():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "var"} <= set(ignored)
