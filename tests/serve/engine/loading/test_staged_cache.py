"""Versions kept in the engine's own layout: taken whole, dropped when they are too many, packed again when damaged."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.engine.loading.staged_cache import StagedCache
from serve.engine.loading.staging import LayerShape, Layout, Staged, Stager, stage_folder, write_staged
from tests.peft_folders import HIDDEN, lora_tensors, write_peft_folder

pytestmark = pytest.mark.anyio
PROJECTION = "model.layers.0.self_attn.o_proj"
LAYOUT = Layout((LayerShape(PROJECTION, HIDDEN, (HIDDEN,), (PROJECTION,)),))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(place: Path) -> StagedCache:
    return StagedCache(place, 1 << 20, LAYOUT.sha256)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path / "version", "1")


def write_version(folder: Path, digest: str) -> Path:
    """What staging reads of a published version."""
    write_peft_folder(folder, tensors=lora_tensors((PROJECTION,)))
    (folder / "manifest.json").write_text(digest)
    return folder


def digest_of(version: Path, folder: Path, cache: StagedCache) -> str:
    staged = stage_folder(version, LAYOUT, folder, cache)
    assert staged is not None
    return staged.digest


def kept(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if len(path.name) == 64)


def test_the_second_time_nothing_is_packed(cache: StagedCache, version: Path, tmp_path: Path) -> None:
    first = digest_of(version, tmp_path / "1", cache)
    (version / "adapter_model.safetensors").unlink()
    assert digest_of(version, tmp_path / "2", cache) == first
    assert (tmp_path / "2" / "weights.bin").samefile(tmp_path / "1" / "weights.bin")


def test_what_was_taken_stays_when_it_is_dropped(cache: StagedCache, version: Path, tmp_path: Path) -> None:
    stage_folder(version, LAYOUT, tmp_path / "1", cache)
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
    first = digest_of(version, tmp_path / "1", cache)
    (weights,) = place.glob("*/weights.bin")
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert digest_of(version, tmp_path / "2", cache) == first
    assert "changed on disk; it is staged again" in caplog.text
    assert digest_of(version, tmp_path / "3", cache) == first


def test_a_new_version_and_another_layout_have_entries_of_their_own(version: Path, place: Path, tmp_path: Path) -> None:
    more_layers = Layout((*LAYOUT.layers, LayerShape("x", 2, (2,), ("x",))))
    matrices = Layout(LAYOUT.layers, "bfloat16")
    other_version = write_version(tmp_path / "other", "2")
    for number, (folder, layout) in enumerate(
        [(version, LAYOUT), (version, more_layers), (version, matrices), (other_version, LAYOUT), (version, LAYOUT)]
    ):
        stage_folder(folder, layout, tmp_path / str(number), StagedCache(place, 1 << 20, layout.sha256))
    assert len(kept(place)) == 4


def test_the_least_recently_used_go_where_they_take_too_much(place: Path, tmp_path: Path) -> None:
    versions = [write_version(tmp_path / f"v{number}", str(number)) for number in range(3)]
    write_staged(versions[0], LAYOUT, tmp_path / "measured")
    size = sum(path.stat().st_size for path in (tmp_path / "measured").iterdir()) + 64  # and its digest
    cache = StagedCache(place, 2 * size, LAYOUT.sha256)
    for number, which in enumerate([0, 1]):
        stage_folder(versions[which], LAYOUT, tmp_path / f"a{number}", cache)
    keys = [cache.key_of(version) for version in versions]
    for age, key in ((100, keys[0]), (200, keys[1])):
        os.utime(place / str(key), (1e9 - age, 1e9 - age))
    stage_folder(versions[2], LAYOUT, tmp_path / "b", cache)
    assert kept(place) == sorted(str(keys[which]) for which in (0, 2))


def test_what_a_killed_process_had_taken_is_removed(cache: StagedCache, place: Path, version: Path) -> None:
    old, new = (place / "lorikeet-1-x" / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (1e9, 1e9))
    stage_folder(version, LAYOUT, place / "lorikeet-1-x" / "0", cache)
    assert (old.exists(), new.exists(), len(kept(place))) == (False, True, 1)


def test_one_that_is_larger_than_the_room_is_not_kept(place: Path, version: Path, tmp_path: Path) -> None:
    assert stage_folder(version, LAYOUT, tmp_path / "1", StagedCache(place, 1, LAYOUT.sha256))
    assert kept(place) == []


def test_a_folder_that_is_no_version_is_staged_and_not_kept(cache: StagedCache, place: Path, tmp_path: Path) -> None:
    folder = write_peft_folder(tmp_path / "adapter", tensors=lora_tensors((PROJECTION,)))
    assert stage_folder(folder, LAYOUT, tmp_path / "1", cache)
    assert kept(place) == []


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> StagedCache:
    return StagedCache(tmp_path_factory.mktemp("shared"), 1 << 20, LAYOUT.sha256)


@pytest.fixture(scope="module")
def stager(shared_cache: StagedCache) -> Iterator[Stager]:
    """One for all tests, each of which has a version of its own: its process imports torch."""
    stager = Stager(LAYOUT, shared_cache)
    yield stager
    stager.close()


@pytest.fixture
def own_version(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A version that no other test has."""
    return write_version(tmp_path / "version", request.node.name)


async def staged_by(stager: Stager, version: Path) -> Staged:
    async with stager.staged(version) as staged:
        assert staged is not None
        assert (staged.folder / "weights.bin").exists()
        return staged


@pytest.mark.slow
async def test_another_process_finds_what_one_has_kept(cache: StagedCache, version: Path, place: Path) -> None:
    digests = []
    for _ in range(2):
        stager = Stager(LAYOUT, cache)
        staged = await staged_by(stager, version)
        digests.append(staged.digest)
        stager.close()
        assert not staged.folder.exists()
    assert digests[0] == digests[1]
    assert len(kept(place)) == 1


@pytest.mark.slow
async def test_what_nobody_touched_is_not_hashed_again(stager: Stager, own_version: Path) -> None:
    packed, taken, held = [await staged_by(stager, own_version) for _ in range(3)]
    assert held is taken
    assert held.digest == packed.digest
    assert [staged.folder.exists() for staged in (packed, taken)] == [False, True]


@pytest.mark.slow
async def test_what_was_touched_is_hashed_again(stager: Stager, own_version: Path) -> None:
    packed, taken = [await staged_by(stager, own_version) for _ in range(2)]
    with (taken.folder / "weights.bin").open("r+b") as file:
        status, byte = os.fstat(file.fileno()), file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(taken.folder / "weights.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    again = await staged_by(stager, own_version)
    assert again.digest == packed.digest  # packed anew: what was kept is the same file
    assert not taken.folder.exists()
    assert (await staged_by(stager, own_version)).digest == packed.digest


@pytest.mark.slow
async def test_what_is_kept_no_longer_is_not_held(stager: Stager, shared_cache: StagedCache, own_version: Path) -> None:
    _, taken = [await staged_by(stager, own_version) for _ in range(2)]
    shared_cache.drop(str(shared_cache.key_of(own_version)))
    assert (await staged_by(stager, own_version)).digest == taken.digest
    assert not taken.folder.exists()


@pytest.mark.slow
async def test_a_use_counts_as_one_of_what_is_kept(
    stager: Stager, shared_cache: StagedCache, own_version: Path
) -> None:
    for _ in range(2):
        await staged_by(stager, own_version)
    kept_folder = shared_cache.root / str(shared_cache.key_of(own_version))
    os.utime(kept_folder, (1e9, 1e9))
    await staged_by(stager, own_version)
    assert kept_folder.stat().st_mtime > 1e9
