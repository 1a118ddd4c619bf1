"""Pushing and pulling data sets through a folder; the transfer itself is tested in tests/adapters/remote."""

from pathlib import Path

import fsspec
import pytest

from adapters.errors import IntegrityError
from adapters.remote.files import RemoteFiles
from config.dataset import CURRENT_FILE, DATASET_MANIFEST_FILE, read_split, verify_dataset, version_folder
from config.domain import DomainConfig
from config.errors import DatasetError
from config.home import Home
from tests.tiny_llama import tiny_domain, write_colour_data
from train.data.build import build_dataset
from train.data.remote import pull_dataset, push_dataset
from train.data.versions import versions_of


class Both:
    """A machine that builds and pushes, and one that pulls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remote_files = RemoteFiles(f"file://{root / 'remote'}", storage_options={}, sleep=lambda seconds: None)
        self.home = Home(root / "home")
        self.there = root / "there" / "colours"

    def build(self, seed: int = 13) -> str:
        domain = tiny_domain(write_colour_data(self.root / "colours.jsonl"))
        data = domain.data.model_copy(update={"seed": seed})
        config: DomainConfig = domain.model_copy(update={"data": data})
        return build_dataset(config, self.home).version

    def push(self, version: str | None = None) -> str:
        return push_dataset(self.home.datasets / "colours", self.remote_files, version).version

    def pull(self, version: str | None = None) -> str:
        return pull_dataset(self.remote_files, self.there, version).version

    def remote(self, version: str, name: str) -> Path:
        return self.root / "remote" / "colours" / version / name


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def test_a_pushed_data_set_is_pulled_whole(both: Both) -> None:
    version = both.build()
    assert both.push() == both.pull() == version
    assert verify_dataset(both.there).version == version
    assert read_split(both.there, "test") == read_split(both.home.datasets / "colours", "test")


def test_a_pulled_data_set_is_its_owners(both: Both) -> None:
    both.build()
    both.push()
    both.pull()
    assert not any(path.stat().st_mode & 0o077 for path in (both.there, *both.there.rglob("*")))


def test_the_remote_points_to_the_version_pushed_last(both: Both) -> None:
    first, second = both.build(), both.build(seed=99)
    both.push(second)
    assert both.pull() == second
    both.push(first)
    assert both.pull() == first
    assert len(versions_of(both.there)) == 2


def test_an_older_version_is_pulled_by_its_name(both: Both) -> None:
    first = both.build()
    both.push()
    both.build(seed=99)
    both.push()
    assert both.pull(first) == first
    assert version_folder(both.there).name == first


@pytest.mark.parametrize("name", ["train.jsonl", "findings.jsonl", DATASET_MANIFEST_FILE])
def test_changed_bytes_are_refused_and_nothing_is_kept(both: Both, name: str) -> None:
    version = both.build()
    both.push()
    path = both.remote(version, name)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"e", b"f", 1) if content else b"x")
    with pytest.raises((IntegrityError, DatasetError)):
        both.pull()
    assert versions_of(both.there) == []
    assert not (both.there / CURRENT_FILE).exists()


def test_a_manifest_of_another_version_is_refused(both: Both) -> None:
    first = both.build()
    both.push()
    second = both.build(seed=99)
    both.push()
    both.remote(second, DATASET_MANIFEST_FILE).write_bytes(both.remote(first, DATASET_MANIFEST_FILE).read_bytes())
    with pytest.raises(IntegrityError, match=rf"manifest of '{second}' .* Push it again"):
        both.pull()


def test_a_local_data_set_that_changed_is_not_pushed(both: Both) -> None:
    version = both.build()
    (both.home.datasets / "colours" / version / "test.jsonl").write_text("")
    with pytest.raises(DatasetError, match=r"changed after it was built"):
        both.push()
    assert not (both.root / "remote").exists()


def test_an_interrupted_push_is_completed_by_the_next(both: Both) -> None:
    version = both.build()
    both.push()
    both.remote(version, DATASET_MANIFEST_FILE).unlink()
    both.remote(version, "test.jsonl").write_text("half")
    both.push()
    assert both.pull() == version


def test_a_missing_data_set_is_named(both: Both) -> None:
    (both.root / "remote").mkdir()
    with pytest.raises(DatasetError, match=r"There is no data set 'colours' at 'file://.*push one there"):
        both.pull()
    with pytest.raises(DatasetError, match=r"There is no version 'aaaaaaaaaaaa' of 'colours'"):
        both.pull("a" * 12)


@pytest.mark.parametrize("version", ["../secret", "1", "AAAAAAAAAAAA"])
def test_a_version_must_be_a_digest(both: Both, version: str) -> None:
    both.build()
    with pytest.raises(DatasetError, match=r"must be 12 hex digits"):
        both.push(version)
    with pytest.raises(DatasetError, match=r"must be 12 hex digits"):
        both.pull(version)


@pytest.mark.slow
def test_a_data_set_goes_through_a_bucket(both: Both) -> None:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
        fsspec.filesystem("s3", **options).mkdir("team")
        both.remote_files = RemoteFiles("s3://team/data", storage_options=options)
        version = both.build()
        assert both.push() == both.pull() == version
    finally:
        server.stop()
