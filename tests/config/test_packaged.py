"""Which configuration file a command reads that was not told: the working folder's own, or the packaged one."""

from pathlib import Path

import pytest

import config
from config.errors import ConfigError
from config.load import load_serve
from config.packaged import default_file
from loadtest.bench.server import ServerError, running_server

PACKAGED = Path(config.__path__[0])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["serve.yaml", "domains/medical.yaml"])
def test_without_a_file_of_ones_own_the_packaged_one_is_read(name: str) -> None:
    assert default_file(name) == PACKAGED / name
    assert default_file(name).is_file()


def test_a_file_of_ones_own_wins_and_the_others_stay_packaged(folder: Path) -> None:
    (folder / "config").mkdir()
    (folder / "config" / "serve.yaml").write_text("base: mine\n")
    assert default_file("serve.yaml") == Path("config/serve.yaml")
    assert default_file("domains/legal.yaml") == PACKAGED / "domains" / "legal.yaml"


def test_a_broken_link_of_ones_own_is_not_passed_over(folder: Path) -> None:
    (folder / "config").mkdir()
    (folder / "config" / "serve.yaml").symlink_to("gone.yaml")
    with pytest.raises(ConfigError, match=r"config/serve\.yaml: No such file"):
        load_serve(default_file("serve.yaml"))


def test_a_file_that_was_named_must_exist_and_its_packaged_twin_is_told() -> None:
    with pytest.raises(ConfigError, match=f"the packaged one is {PACKAGED}/serve.yaml"):
        load_serve(Path("config/serve.yaml"))


@pytest.mark.parametrize("path", ["config/other.yaml", "serve.yaml", "config/../config/errors.py"])
def test_a_file_without_a_packaged_twin_is_only_missing(path: str) -> None:
    with pytest.raises(ConfigError, match=r"Give the path of a YAML file\.$"):
        load_serve(Path(path))


@pytest.mark.slow
def test_modules_in_the_working_folder_do_not_replace_ours(folder: Path) -> None:
    (folder / "train.py").write_text("raise SystemExit('the train.py of the working folder')\n")
    serving = running_server(default_file("serve.yaml"), folder, folder / "serve.log")
    with pytest.raises(ServerError, match="There is no base"), serving:
        pass
