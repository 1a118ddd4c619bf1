"""Versions kept in the engine's own layout: taken whole, dropped when they are too many, packed again when damaged."""

import os
from pathlib import Path

import pytest

from serve.engine.staged_cache import StagedCache
from serve.engine.staging import LayerShape, Stager, layers_sha256, stage_folder, write_staged
from tests.peft_folders import HIDDEN, lora_tensors, write_peft_folder

pytestmark = pytest.mark.anyio
PROJECTION = "model.layers.0.self_attn.o_proj"
LAYERS = (LayerShape(PROJECTION, HIDDEN, (HIDDEN,), (PROJECTION,)),)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(place: Path) -> StagedCache:
    return StagedCache(place, 1 << 20, layers_sha256(LAYERS))


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path / "version", "1")


def write_version(folder: Path, digest: str) -> Path:
    """What staging reads of a published version."""
    write_peft_folder(folder, tensors=lora_tensors((PROJECTION,)))
    (folder / "manifest.json").write_text(digest)
    return folder


def kept(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if len(path.name) == 64)


def test_the_second_time_nothing_is_packed(cache: StagedCache, version: Path, tmp_path: Path) -> None:
    first = stage_folder(version, LAYERS, tmp_path / "1", cache)
    (version / "adapter_model.safetensors").unlink()
    assert stage_folder(version, LAYERS, tmp_path / "2", cache) == first
    assert (tmp_path / "2" / "weights.bin").samefile(tmp_path / "1" / "weights.bin")


def test_what_was_taken_stays_when_it_is_dropped(cache: StagedCache, version: Path, tmp_path: Path) -> None:
    stage_folder(version, LAYERS, tmp_path / "1", cache)
    content = (tmp_path / "1" / "weights.bin").read_bytes()
    key = cache.key_of(version)
    assert key is not None
    cache.drop(key)
    assert (tmp_path / "1" / "weights.bin").read_bytes() == content
    assert not cache.take(key, tmp_path / "2")
    assert not (tmp_path / "2").exists()


def test_a_damaged_one_is_packed_again(
    cache: StagedCache, version: Path, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = stage_folder(version, LAYERS, tmp_path / "1", cache)
    (weights,) = place.glob("*/weights.bin")
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert stage_folder(version, LAYERS, tmp_path / "2", cache) == first
    assert "changed on disk; it is staged again" in caplog.text
    assert stage_folder(version, LAYERS, tmp_path / "3", cache) == first


def test_a_new_version_and_other_layers_have_entries_of_their_own(version: Path, place: Path, tmp_path: Path) -> None:
    other_layers = (LayerShape(PROJECTION, HIDDEN, (HIDDEN,), (PROJECTION,)), LayerShape("x", 2, (2,), ("x",)))
    other_version = write_version(tmp_path / "other", "2")
    for number, (folder, layers) in enumerate(
        [(version, LAYERS), (version, other_layers), (other_version, LAYERS), (version, LAYERS)]
    ):
        stage_folder(folder, layers, tmp_path / str(number), StagedCache(place, 1 << 20, layers_sha256(layers)))
    assert len(kept(place)) == 3


def test_the_least_recently_used_go_where_they_take_too_much(place: Path, tmp_path: Path) -> None:
    versions = [write_version(tmp_path / f"v{number}", str(number)) for number in range(3)]
    write_staged(versions[0], LAYERS, tmp_path / "measured")
    size = sum(path.stat().st_size for path in (tmp_path / "measured").iterdir()) + 64  # and its digest
    cache = StagedCache(place, 2 * size, layers_sha256(LAYERS))
    for number, which in enumerate([0, 1]):
        stage_folder(versions[which], LAYERS, tmp_path / f"a{number}", cache)
    keys = [cache.key_of(version) for version in versions]
    for age, key in ((100, keys[0]), (200, keys[1])):
        os.utime(place / str(key), (1e9 - age, 1e9 - age))
    stage_folder(versions[2], LAYERS, tmp_path / "b", cache)
    assert kept(place) == sorted(str(keys[which]) for which in (0, 2))


def test_what_a_killed_process_had_taken_is_removed(cache: StagedCache, place: Path, version: Path) -> None:
    old, new = (place / "lorikeet-1-x" / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (1e9, 1e9))
    stage_folder(version, LAYERS, place / "lorikeet-1-x" / "0", cache)
    assert (old.exists(), new.exists(), len(kept(place))) == (False, True, 1)


def test_one_that_is_larger_than_the_room_is_not_kept(place: Path, version: Path, tmp_path: Path) -> None:
    assert stage_folder(version, LAYERS, tmp_path / "1", StagedCache(place, 1, layers_sha256(LAYERS)))
    assert kept(place) == []


def test_a_folder_that_is_no_version_is_staged_and_not_kept(cache: StagedCache, place: Path, tmp_path: Path) -> None:
    folder = write_peft_folder(tmp_path / "adapter", tensors=lora_tensors((PROJECTION,)))
    assert stage_folder(folder, LAYERS, tmp_path / "1", cache)
    assert kept(place) == []


async def test_another_process_finds_what_one_has_kept(cache: StagedCache, version: Path, place: Path) -> None:
    digests = []
    for _ in range(2):
        stager = Stager(LAYERS, cache)
        staged = await stager.stage(version)
        assert staged is not None
        digests.append(staged.digest)
        stager.close()
        assert not staged.folder.exists()
    assert digests[0] == digests[1]
    assert len(kept(place)) == 1
