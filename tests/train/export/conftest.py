"""A home with a tiny base, and a version of `colours` on it."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from config.home import Home
from lorikeet import app
from tests.exported import publish, random_adapter
from tests.tiny_llama import prepare_tiny_base, write_tiny_llama


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("export-model"))


@pytest.fixture
def home(tmp_path, model_folder) -> Home:
    home = Home(tmp_path / "home")
    prepare_tiny_base(home, model_folder)
    publish(home, random_adapter(home.bases / "tiny", tmp_path / "colours"), "colours")
    return home


@pytest.fixture
def lorikeet(home):
    def run(*words: str | Path) -> Result:
        arguments = [*map(str, words), "--home", str(home.root)]
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})

    return run
