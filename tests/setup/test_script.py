"""The set-up script's refusals and its memory; it installs nothing here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """What the script reads, in a folder of its own."""
    for name in ("scripts/setup.sh", "requirements/cpu.lock", "pyproject.toml", "adapters/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def fake_python(path, version, has_venv=True):
    """A Python that says its version and can nothing else; with no version it does not run at all."""
    imports = 0 if has_venv else 1
    say = (
        f'case "$*" in --version) echo Python {version}.0;; -c*ensurepip*) exit {imports};;'
        f" -c*) echo {version};; *) exit 1;; esac\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + (say if version else "exit 1\n"))
    path.chmod(0o755)
    return path


def hide_the_machines_pythons(checkout):
    script = checkout / "scripts" / "setup.sh"
    script.write_text(script.read_text().replace("/usr/bin/python", f"{checkout}/usr/bin/python"))


def run_setup(checkout, **environment):
    return subprocess.run(
        [checkout / "scripts" / "setup.sh"],
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_python_is_refused_with_what_was_found_and_what_to_do(checkout):
    python = fake_python(checkout / "python3.14", "3.14")
    finished = run_setup(checkout, LORIKEET_DEVICE="cpu", PYTHON=str(python))
    assert finished.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13; found Python 3.14.0." in finished.stderr
    assert "PYTHON=/path/to/python3.11 make setup" in finished.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3.11": "3.11", "python3.12": "3.12", "python3": "3.13"}, "3.11"),
        ({"python3.11": "", "python3.12": "3.12", "python3.13": "3.13"}, "3.12"),  # a shim that runs nothing
        ({"python3.13": "3.13", "python3": "3.11"}, "3.11"),
        ({"python3": "3.10", "python": "3.13"}, "3.13"),
    ],
)
def test_the_first_supported_python_that_is_there_is_taken(checkout, there, taken):
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):
        fake_python(checkout / name, there.get(name, ""))
    hide_the_machines_pythons(checkout)
    finished = run_setup(checkout, LORIKEET_DEVICE="cpu", PATH=f"{checkout}:{os.environ['PATH']}")
    assert f"environment for cpu in .venv, with Python {taken}.0" in finished.stdout
    assert f"apt install python{taken}-venv" in finished.stderr


def test_a_python_without_venv_is_passed_over(checkout):
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):
        fake_python(checkout / name, name.removeprefix("python"), has_venv=name == "python3.12")
    hide_the_machines_pythons(checkout)
    finished = run_setup(checkout, LORIKEET_DEVICE="cpu", PATH=f"{checkout}:{os.environ['PATH']}")
    assert "environment for cpu in .venv, with Python 3.12.0" in finished.stdout


def test_where_no_python_has_venv_the_package_is_named(checkout):
    python = fake_python(checkout / "python3.12", "3.12", has_venv=False)
    finished = run_setup(checkout, LORIKEET_DEVICE="cpu", PYTHON=str(python))
    assert finished.returncode == 1
    assert "Python 3.12 lacks its venv module. On Debian or Ubuntu: apt install python3.12-venv" in finished.stderr
    assert not (checkout / ".venv").exists()


def test_an_environment_of_another_python_is_made_anew(complete):
    fake_python(complete / ".venv" / "bin" / "python", "3.11")
    same, other = (fake_python(complete / f"python{version}", version) for version in ("3.11", "3.12"))
    assert run_setup(complete, LORIKEET_DEVICE="cpu", PYTHON=str(same)).stdout == "instant\n"
    assert "with Python 3.12.0" in run_setup(complete, LORIKEET_DEVICE="cpu", PYTHON=str(other)).stdout


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
    assert "needs Python 3.11, 3.12 or 3.13" in finished.stderr


def test_a_new_package_sets_up_again(complete):
    (complete / "quality").mkdir()
    (complete / "quality" / "__init__.py").touch()
    finished = run_setup(complete, LORIKEET_DEVICE="cpu", PYTHON="/bin/false")
    assert "needs Python 3.11, 3.12 or 3.13" in finished.stderr


def test_it_can_stop_after_the_packages(checkout):
    python = checkout / "python3.11"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;'
        " -c*version_info*) echo 3.11;; esac\n"
    )
    python.chmod(0o755)
    command = [checkout / "scripts" / "setup.sh", "packages"]
    environment = {"PATH": os.environ["PATH"], "LORIKEET_DEVICE": "cpu", "PYTHON": str(python)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "pinned packages" in finished.stdout
    assert "lorikeet itself" not in finished.stdout
    assert not (checkout / ".venv" / "lorikeet-setup.stamp").exists()
