"""`lorikeet data prune` keeps what is current and what a published adapter was trained on."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.store.manifest import DatasetRef
from adapters.store.store import AdapterStore
from config.dataset import DatasetManifest, verify_dataset
from config.home import Home
from lorikeet import app
from tests.peft_folders import draft_for, write_peft_folder
from tests.tiny_llama import tiny_domain, write_colour_data
from train.data.build import build_dataset
from train.data.prune import remove_version
from train.data.versions import point_to, versions_of


def build(home: Home, seed: int) -> DatasetManifest:
    domain = tiny_domain(write_colour_data(home.root.parent / "colours.jsonl"))
    return build_dataset(domain.model_copy(update={"data": domain.data.model_copy(update={"seed": seed})}), home)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def built(home: Home) -> list[DatasetManifest]:
    """Three versions: an adapter was trained on the first, and the last is current."""
    versions = [build(home, seed) for seed in (1, 2, 3)]
    trained_on = DatasetRef(
        dataset_sha256=versions[0].dataset_sha256,
        source="test",
        licence=None,
        num_train=1,
        num_validation=1,
        num_test=1,
        digest=versions[0].digest,
    )
    folder = write_peft_folder(home.root / "made")
    AdapterStore(home.adapters).publish(folder, draft_for(folder, "colours", dataset=trained_on))
    return versions


def prune(home: Home, *options: str) -> str:
    result = CliRunner().invoke(app, ["data", "prune", *options, "--home", str(home.root)])
    assert result.exit_code == 0, result.output
    return result.output


def left(home: Home) -> set[str]:
    return {folder.name for folder in versions_of(home.datasets / "colours")}


def test_what_is_not_needed_is_only_listed(home: Home, built: list[DatasetManifest]) -> None:
    printed = prune(home)
    assert [each.version in printed for each in built] == [False, True, False]
    assert left(home) == {each.version for each in built}


def test_yes_deletes_it_and_nothing_else(home: Home, built: list[DatasetManifest]) -> None:
    assert f"deleted colours {built[1].version}" in prune(home, "--yes")
    assert left(home) == {built[0].version, built[2].version}
    assert verify_dataset(home.datasets / "colours").digest == built[2].digest
    assert "Every version is current" in prune(home, "--yes")


def test_a_version_that_became_current_is_kept(home: Home, built: list[DatasetManifest]) -> None:
    point_to(home.datasets / "colours", built[1].version)
    assert not remove_version(home.datasets, built[1])
    assert built[1].version in left(home)


def test_a_store_that_cannot_be_read_deletes_nothing(home: Home, built: list[DatasetManifest]) -> None:
    (next(home.adapters.rglob("manifest.json"))).write_text("{")
    result = CliRunner().invoke(app, ["data", "prune", "--yes", "--home", str(home.root)])
    assert (result.exit_code, left(home)) == (1, {each.version for each in built})


def test_a_home_without_data_sets_has_nothing_to_prune(home: Home) -> None:
    assert "Every version is current" in prune(home)
    assert not home.root.exists()
