"""The set-up script's refusals and its memory; it installs nothing here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    """What the script reads, in a folder of its own."""
    for name in ("scripts/setup.sh", "requirements/cpu.lock", "pyproject.toml", "adapters/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run_setup(checkout, **environment):
    return subprocess.run(
        [checkout / "scripts" / "setup.sh"],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_python_is_refused_with_what_was_found_and_what_to_do(checkout):
    python = checkout / "python3.12"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.12.1 && exit 0\nexit 1\n')
    python.chmod(0o755)
    finished = run_setup(checkout, LORIKEET_DEVICE="cpu", PYTHON=str(python))
    assert finished.returncode == 1
    assert "needs Python 3.11; found Python 3.12.1." in finished.stderr
    assert "PYTHON=/path/to/python3.11 make setup" in finished.stderr
    assert not (checkout / ".venv").exists()


def test_an_unknown_device_is_refused(checkout):
    finished = run_setup(checkout, LORIKEET_DEVICE="tpu")
    assert finished.returncode == 1
    assert "LORIKEET_DEVICE must be cpu or gpu, got 'tpu'" in finished.stderr


@pytest.fixture
def complete(checkout):
    """A checkout whose stamp says that everything is installed; a second set-up would need a Python."""
    lines = (checkout / "scripts" / "setup.sh").read_text().replace("    exit 0\n", "    echo instant; exit 0\n")
    (checkout / "scripts" / "setup.sh").write_text(lines)
    wanted = subprocess.run(
        ["bash", "-c", f"{next(line for line in lines.splitlines() if line.startswith('WANTED='))}; echo $WANTED"],
        env={"PATH": os.environ["PATH"], "DEVICE": "cpu", "LOCK": "requirements/cpu.lock"},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "lorikeet-setup.stamp").write_text(wanted.stdout)
    return checkout


def test_a_complete_environment_is_left_alone(complete):
    finished = run_setup(complete, LORIKEET_DEVICE="cpu", PYTHON="/bin/false")
    assert (finished.returncode, finished.stdout) == (0, "instant\n")


@pytest.mark.parametrize("name", ["requirements/cpu.lock", "pyproject.toml"])
def test_a_changed_file_sets_up_again(complete, name):
    with (complete / name).open("a") as file:
        file.write("# changed\n")
    finished = run_setup(complete, LORIKEET_DEVICE="cpu", PYTHON="/bin/false")
    assert "needs Python 3.11" in finished.stderr


def test_a_new_package_sets_up_again(complete):
    (complete / "quality").mkdir()
    (complete / "quality" / "__init__.py").touch()
    finished = run_setup(complete, LORIKEET_DEVICE="cpu", PYTHON="/bin/false")
    assert "needs Python 3.11" in finished.stderr
