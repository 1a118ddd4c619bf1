"""A home with a tiny base, and a version of `colours` on it."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from config.home import Home
from lorikeet import app
from tests.exported import publish, random_adapter, write_bpe_model
from tests.tiny_llama import prepare_tiny_base


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory):
    return write_bpe_model(tmp_path_factory.mktemp("export-model"))


@pytest.fixture
def model_folder(tmp_path, shared_model):
    """A copy that may be changed."""
    return shutil.copytree(shared_model, tmp_path / "model-folder")


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory, shared_model):
    """A folder with the home, and with the adapter that is published there."""
    root = tmp_path_factory.mktemp("export-home")
    home = Home(root / "home")
    prepare_tiny_base(home, shared_model)
    publish(home, random_adapter(home.bases / "tiny", root / "colours"), "colours")
    return root


@pytest.fixture
def home(tmp_path, shared_home) -> Home:
    shutil.copytree(shared_home, tmp_path, dirs_exist_ok=True)
    return Home(tmp_path / "home")


@pytest.fixture
def lorikeet(home):
    def run(*words: str | Path) -> Result:
        arguments = [*map(str, words), *([] if "--home" in words else ["--home", str(home.root)])]
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})

    return run
