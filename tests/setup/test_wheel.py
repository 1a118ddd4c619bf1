"""A wheel holds all that the program needs: built, installed beside the environment, and used outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from config.home import Home
from loadtest.bench.server import free_port, running_command
from serve.kernels.build import has_compiler
from tests.house.test_imports import PACKAGES
from tests.live_server import BASE, write_serve_config

pytestmark = pytest.mark.slow  # builds, installs and imports a wheel

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
MODULES = ("lorikeet", *sorted(PACKAGES), "serve.engine.plugin", "serve.kernels.build", "loadtest.bench.cli")


def source_files(root: Path) -> set[str]:
    """What the packages hold, as in a wheel; this module's copies have no byte code."""
    inside = {str(file.relative_to(root)) for name in PACKAGES for file in (root / name).rglob("*") if file.is_file()}
    return inside | {"lorikeet.py"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built of: building leaves nothing in the checkout, and reads no old `build` folder."""
    folder = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=NOT_SOURCE)
    for name in ("lorikeet.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make wheel` builds it, with nothing from an index."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        *PIP,
        "wheel",
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True, timeout=300)
    return next(folder.glob("lorikeet-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder beside the environment, which comes before it on the path of `outside`."""
    folder = tmp_path_factory.mktemp("installed")
    command = [*PIP, "install", "--no-index", "--no-deps", "--no-compile", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, timeout=300)
    return folder


def environment(installed: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(installed)}


def outside(installed: Path, folder: Path, code: str) -> object:
    """What a program prints as JSON that runs with the installed wheel in a folder that is no checkout."""
    command = [sys.executable, "-P", "-c", f"import json\n{code}"]
    finished = subprocess.run(
        command, cwd=folder, env=environment(installed), capture_output=True, text=True, check=False, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_the_wheel_holds_every_file_of_the_packages(source: Path, wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == source_files(source)
    assert {"config/serve.yaml", "serve/kernels/lora.cpp", "serve/engine/json_logging.json"} <= names


def test_modules_and_the_plugin_of_vllm_come_from_the_install(installed: Path, tmp_path: Path) -> None:
    files = outside(
        installed,
        tmp_path,
        "import importlib, importlib.metadata as m\n"
        f"files = [importlib.import_module(name).__file__ for name in {MODULES!r}]\n"
        "plugin = m.entry_points(group='vllm.general_plugins')['lorikeet']\n"
        "print(json.dumps([*files, plugin.load().__code__.co_filename, str(plugin.dist.locate_file('.'))]))",
    )
    assert isinstance(files, list)
    assert [file for file in files if not Path(file).is_relative_to(installed)] == []


def test_the_defaults_outside_a_checkout_are_the_packaged_files(installed: Path, tmp_path: Path) -> None:
    read = outside(
        installed,
        tmp_path,
        "from config.load import load_domain, load_serve\n"
        "from config.packaged import default_file\n"
        "from demo.cli import DOMAINS\n"
        "names = [load_domain(default_file(f'domains/{name}.yaml')).name for name in DOMAINS]\n"
        "print(json.dumps([load_serve(default_file('serve.yaml')).base, *names]))",
    )
    assert read == [BASE, "medical", "finance", "legal"]


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_the_cpu_operator_starts_from_the_install(installed: Path, tmp_path: Path) -> None:
    compiled = outside(
        installed,
        tmp_path,
        "import torch\n"
        "from serve.kernels import build\n"
        "print(json.dumps([build.__file__, build.load_kernels(), torch.ops.lorikeet.instruction_sets()]))",
    )
    assert isinstance(compiled, list)
    assert Path(compiled[0]).is_relative_to(installed)
    assert compiled[1] is True
    assert compiled[2]


def test_a_command_of_the_install_needs_no_configuration_file(installed: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [installed / "bin" / "lorikeet", "serve", "--home", tmp_path]
    finished = subprocess.run(
        command, cwd=tmp_path, env=environment(installed), capture_output=True, text=True, check=False
    )
    assert f"There is no base '{BASE}'" in finished.stderr


@pytest.mark.engine
def test_the_server_starts_from_the_install(
    installed: Path, live_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    write_serve_config(tmp_path / "config", cpu_compile=False, max_model_len=256)
    monkeypatch.chdir(tmp_path)
    port = free_port()
    command = [str(installed / "bin" / "lorikeet"), "serve", "--home", str(live_home.root), "--port", str(port)]
    url, log_file = f"http://127.0.0.1:{port}", tmp_path / "serve.log"
    with running_command(command, url, "/ready", log_file, environment=environment(installed)):
        question = {"messages": [{"role": "user", "content": "What is number 7 of the colours?"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "colours"} | question, timeout=120).json()
    assert answer["model"] == "colours@1"
    assert "Configuration: config/serve.yaml" in log_file.read_text()
    # Byte code is written where a module is imported from, and this one only the engine's worker imports.
    assert list((installed / "serve" / "engine" / "__pycache__").glob("worker.*.pyc"))
