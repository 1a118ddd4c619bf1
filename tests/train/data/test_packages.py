"""The example domains' data packages are an extra: all else works without them."""

import subprocess
import sys
from pathlib import Path

import pytest

from config.dataset import read_split
from config.domain import DomainConfig
from tests.tiny_llama import tiny_domain, write_colour_data

HIDE = """
import importlib.abc, importlib.metadata, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("iso18245", "licensedcode", "simple_icd_10_cm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def hidden(name):
    if name in ("iso18245", "licensedcode-data", "simple-icd-10-cm"):
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

found, importlib.metadata.version = importlib.metadata.version, hidden
sys.meta_path.insert(0, Hidden())
"""


def without_packages(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE + code], cwd=folder, capture_output=True, text=True, check=False, timeout=240
    )


def with_refusal(domain: DomainConfig) -> DomainConfig:
    answer = domain.answer.model_copy(update={"refusal": "no colour"})
    return domain.model_copy(
        update={"answer": answer, "data": domain.data.model_copy(update={"out_of_scope_share": 0.2})}
    )


@pytest.mark.slow
def test_own_data_with_refusals_needs_no_package(tmp_path: Path) -> None:
    domain = with_refusal(tiny_domain(write_colour_data(tmp_path / "c.jsonl")))
    (tmp_path / "domain.json").write_text(domain.model_dump_json())
    finished = without_packages(
        tmp_path,
        "from pathlib import Path\n"
        "from config.domain import DomainConfig\n"
        "from config.home import Home\n"
        "from train.data.build import build_dataset\n"
        "domain = DomainConfig.model_validate_json(Path('domain.json').read_text())\n"
        "build_dataset(domain, Home(Path('var')))",
    )
    assert finished.returncode == 0, finished.stderr
    assert "no colour" in {row.output for row in read_split(tmp_path / "var" / "datasets" / "colours", "test")}


@pytest.mark.slow
def test_the_server_imports_no_package_of_the_demo(tmp_path: Path) -> None:
    finished = without_packages(tmp_path, "import demo.cli, loadtest.load_cli, serve.app, serve.build, serve.cli")
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
def test_an_example_domain_says_how_to_install_its_data(tmp_path: Path) -> None:
    finished = without_packages(
        tmp_path,
        "from config.data import DataConfig\n"
        "from train.data.sources import source_identity\n"
        "source_identity(DataConfig(source='iso18245'))",
    )
    assert "is not installed. Run `pip install 'lorikeet[demo]'`, or `make setup`" in finished.stderr
    assert "simple-icd-10-cm" in finished.stderr
