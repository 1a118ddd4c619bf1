"""Private files are for their owner from their first byte on, whatever the umask, and older ones become so."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.store.store import AdapterStore
from config.home import Home
from config.private import close_to_others, make_private_folder, private_paths, write_private
from config.serve import ServeConfig
from quality.held_out import HeldOutSet, write_held_out
from quality.samples.store import QualityStore
from serve.access.exposure import warn_of_exposure
from tests.serving import make_serving
from train.runs import start_run


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.touch(mode=0o666)
    write_private(path, "ü\n")
    assert (mode_of(path), path.read_text("utf-8")) == (0o600, "ü\n")


def test_a_private_folder_is_its_owners_and_becomes_so(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o777)
    make_private_folder(tmp_path / "there")
    make_private_folder(tmp_path / "new")
    assert (mode_of(tmp_path / "there"), mode_of(tmp_path / "new")) == (0o700, 0o700)


def test_a_run_is_its_owners(tmp_path: Path) -> None:
    start_run(tmp_path / "runs" / "medical", "key")
    assert mode_of(tmp_path / "runs") == 0o700


def test_held_out_questions_are_their_owners(tmp_path: Path) -> None:
    write_held_out(HeldOutSet(max_tokens=8), tmp_path)
    assert mode_of(tmp_path / "held_out.json") == 0o600


def test_a_versions_examples_are_its_owners_and_its_weights_everybodys(store: AdapterStore, base_folder: Path) -> None:
    manifest = make_serving(store, base_folder).publish("medical")
    folder = store.folder(store.resolve(manifest.lora_name))
    modes = {path.name: mode_of(path) for path in folder.iterdir()}
    assert modes.pop("fingerprint.json") == 0o400
    assert set(modes.values()) == {0o444}


def test_a_quality_store_that_others_could_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "quality.sqlite3"
    QualityStore(path).close()
    path.chmod(0o644)
    QualityStore(path).close()
    assert mode_of(path) == 0o600


def open_home(root: Path) -> Home:
    home = Home(root)
    names = ("held_out.json", "fingerprint.json", "evaluation.jsonl", "README.md")
    version = (f"adapters/medical/1/{name}" for name in names)
    for name in (
        "keys.json",
        "quality.key",
        "quality.sqlite3",
        "datasets/medical/train.jsonl",
        "runs/a",
        "jobs/a",
        *version,
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    return home


def test_a_server_closes_the_private_files_of_its_state_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = open_home(tmp_path)
    warn_of_exposure(ServeConfig(base="tiny"), home)
    assert not any(mode_of(path) & 0o077 for path in private_paths(home) if path.exists())
    assert mode_of(tmp_path / "adapters" / "medical" / "1" / "README.md") == 0o666
    assert "Removed other users' access to private files" in caplog.text
    caplog.clear()
    warn_of_exposure(ServeConfig(base="tiny"), home)
    assert caplog.text == ""


def test_what_cannot_be_closed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "private"
    path.touch(mode=0o644)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chmod", refuse)  # as for another user's file
    close_to_others([path, tmp_path / "nothing"])
    assert "Other users can read private files" in caplog.text
    assert str(path) in caplog.text


def test_a_key_file_of_the_operators_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "elsewhere.json"
    path.touch(mode=0o640)
    warn_of_exposure(ServeConfig(base="tiny", keys_file=path), Home(tmp_path / "var"))
    assert mode_of(path) == 0o640
    assert "chmod go=" in caplog.text


def judged(url: str, key: str | None) -> ServeConfig:
    judge = {"url": url, "model": "big", "api_key_env": key}
    return ServeConfig.model_validate({"base": "tiny", "quality": {"privacy": "redacted", "judge": judge}})


@pytest.mark.parametrize(
    ("url", "key", "is_warned"),
    [
        ("http://judge.example/v1", "JUDGE_KEY", True),
        ("http://192.0.2.1:8001/v1", "JUDGE_KEY", True),
        ("http://127.0.0.1.evil.example/v1", "JUDGE_KEY", True),
        ("http://judge.example/v1", None, False),
        ("https://judge.example/v1", "JUDGE_KEY", False),
        ("http://127.0.0.1:8001/v1", "JUDGE_KEY", False),
        ("http://localhost:8001/v1", "JUDGE_KEY", False),
        ("http://[::1]:8001/v1", "JUDGE_KEY", False),
    ],
)
def test_a_judges_key_that_travels_in_the_clear_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str, key: str | None, is_warned: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_exposure(judged(url, key), Home(tmp_path))
    assert ("unencrypted" in caplog.text) is is_warned
