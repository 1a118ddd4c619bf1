"""A remote store to which anything happens: away, cut off, wrong, forged, overtaken."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from adapters.errors import IntegrityError, RemoteConflictError, RemoteStoreError, StoreDiskError
from adapters.reference import Target
from adapters.store.history import HISTORY_FILE
from adapters.store.integrity import digest_of
from adapters.store.manifest import FileEntry, Manifest
from adapters.store.store import AdapterStore
from tests.peft_folders import draft_for
from tests.remote_stores import FIRST

WEIGHTS = "adapter_model.safetensors"
FLAKY_URL = "flaky://remote"


def nothing(*_):
    pass


class FlakyFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A remote store in memory to which anything can happen."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    before = staticmethod(nothing)  # called with the operation and the path
    after_get = staticmethod(nothing)  # called with the local path

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def ls(self, path, detail=True, **options):
        self.before("ls", path)
        return super().ls(path, detail, **options)

    def info(self, path, **options):
        self.before("info", path)
        return super().info(path, **options)

    def cat_file(self, path, **options):
        self.before("cat_file", path)
        return super().cat_file(path, **options)

    def pipe_file(self, path, value, **options):
        self.before("pipe_file", path)
        return super().pipe_file(path, value, **options)

    def put_file(self, local, path, **options):
        self.before("put_file", path)
        return super().put_file(local, path, **options)

    def get_file(self, path, local, **options):
        self.before("get_file", path)
        super().get_file(path, local, **options)
        self.after_get(Path(local))


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


@pytest.fixture
def flaky():
    FlakyFileSystem.store.clear()
    FlakyFileSystem.pseudo_dirs[:] = [""]
    yield FlakyFileSystem
    FlakyFileSystem.before = FlakyFileSystem.after_get = staticmethod(nothing)


def versions_in(store):
    return {name: store.versions(name) for name in store.names()}


def write_remote(path, content):
    FlakyFileSystem().pipe_file(f"remote/{path}", content)


def read_remote(path):
    return FlakyFileSystem().cat_file(f"remote/{path}")


def edit_remote_manifest(target, change):
    """Change the files that the remote's manifest lists, and forge its digest."""
    path = f"{target.name}/{target.version}/manifest.json"
    manifest = Manifest.model_validate_json(read_remote(path))
    files = tuple(change(list(manifest.files)))
    write_remote(
        path, manifest.model_copy(update={"files": files, "digest": digest_of(files)}).model_dump_json().encode()
    )


def test_a_remote_that_is_back_after_two_failures_is_used(connect, flaky, origin, mirror, waits):
    connect(FLAKY_URL, origin).push(FIRST)
    failures = iter([ConnectionError("away"), TimeoutError("slow")])

    def fail_twice(*_):
        for failure in failures:
            raise failure

    flaky.before = staticmethod(fail_twice)
    assert connect(FLAKY_URL, mirror).sync() == ("medical",)
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 0.75
    assert len(waits) == 2


def be_away(*_):
    raise ConnectionError("no route to host")


def test_a_remote_that_is_away_is_named_and_what_is_cached_goes_on_being_used(connect, flaky, origin, mirror, waits):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, mirror)
    remote.sync()
    remote.locate("medical")
    flaky.before = staticmethod(be_away)
    with pytest.raises(RemoteStoreError, match="list the adapters at 'flaky://remote': ConnectionError: no route"):
        remote.sync()
    assert len(waits) == 3
    assert waits == sorted(waits)
    assert remote.locate("medical") == FIRST
    assert mirror.verify(FIRST).lora_name == "medical@1"


def test_a_remote_that_came_back_gives_what_it_could_not_give_before(connect, flaky, origin, mirror):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, mirror)
    remote.sync()
    flaky.before = staticmethod(be_away)
    with pytest.raises(RemoteStoreError, match="cached versions can still be used"):
        remote.locate("medical")
    assert versions_in(mirror) == {}
    flaky.before = staticmethod(nothing)
    assert remote.locate("medical") == FIRST


def test_refused_credentials_are_not_tried_again(connect, flaky, mirror, waits):
    def refuse(*_):
        raise PermissionError("Forbidden")

    flaky.before = staticmethod(refuse)
    with pytest.raises(RemoteStoreError, match=r"permission denied \(Forbidden\)"):
        connect(FLAKY_URL, mirror).sync()
    assert waits == []


def test_credentials_in_the_url_are_never_shown(connect, flaky, mirror):
    with pytest.raises(RemoteStoreError) as refusal:
        connect("flaky://key:secret@remote", mirror).sync()
    assert "secret" not in str(refusal.value)


def test_a_version_that_is_cut_off_on_the_way_is_fetched_again(connect, flaky, origin, mirror, waits):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, mirror)
    remote.sync()
    cuts = iter([100])

    def cut_once(local):
        for size_bytes in cuts:
            os.truncate(local, size_bytes)

    flaky.after_get = staticmethod(cut_once)
    remote.fetch(FIRST)
    mirror.verify(FIRST)
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda c: c[:-1], r"'medical/1/adapter_model.safetensors' at .* has \d+ bytes", id="truncated"),
        pytest.param(lambda c: c[:-1] + bytes([c[-1] ^ 1]), r"'adapter_model.safetensors' has SHA-256", id="one bit"),
    ],
)
def test_bytes_that_are_not_the_manifests_are_refused_until_they_are_right(
    connect, flaky, origin, mirror, damage, message
):
    connect(FLAKY_URL, origin).push(FIRST)
    good = read_remote(f"medical/1/{WEIGHTS}")
    write_remote(f"medical/1/{WEIGHTS}", damage(good))
    remote = connect(FLAKY_URL, mirror)
    remote.sync()
    with pytest.raises(IntegrityError, match=message):
        remote.fetch(FIRST)
    assert versions_in(mirror) == {}
    assert [path for path in (mirror.root / ".staging").iterdir() if path.is_dir()] == []
    write_remote(f"medical/1/{WEIGHTS}", good)
    assert remote.locate("medical") == FIRST


@pytest.mark.parametrize("path", ["../../evil", "/etc/evil", "evil.bin", "sub/README.md"])
def test_a_remote_manifest_cannot_reach_out_of_the_version(connect, flaky, origin, mirror, tmp_path, path):
    connect(FLAKY_URL, origin).push(FIRST)
    edit_remote_manifest(FIRST, lambda files: [*files, FileEntry(path=path, size_bytes=0, sha256="0" * 64)])
    fetched = []
    remote = connect(FLAKY_URL, mirror)
    remote.sync()
    flaky.before = staticmethod(lambda operation, path: fetched.append(path) if operation == "get_file" else None)
    with pytest.raises(IntegrityError, match=f"its manifest lists '{path}'; a version may hold only"):
        remote.fetch(FIRST)
    assert fetched == []


def test_names_that_are_no_adapters_are_never_touched(connect, flaky, origin, mirror, tmp_path):
    connect(FLAKY_URL, origin).push(FIRST)
    for name in ("..", ".hidden", "Evil", "a b", "x" * 64):
        FlakyFileSystem.store[f"/remote/{name}/history.jsonl"] = FlakyFileSystem.store["/remote/medical/history.jsonl"]
    before = sorted(path.name for path in tmp_path.iterdir())
    assert connect(FLAKY_URL, mirror).sync() == ("medical",)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "mirror") == before
    assert sorted(path.name for path in mirror.root.iterdir()) == ["medical"]


def test_files_that_the_manifest_does_not_list_are_not_fetched(connect, flaky, origin, mirror):
    connect(FLAKY_URL, origin).push(FIRST)
    write_remote("medical/1/evil.bin", b"\x80")
    remote = connect(FLAKY_URL, mirror)
    remote.sync()
    assert not (remote.fetch(FIRST) / "evil.bin").exists()


def test_however_many_ask_a_version_is_fetched_once(connect, flaky, origin, mirror):
    connect(FLAKY_URL, origin).push(FIRST)
    connect(FLAKY_URL, mirror).sync()
    fetched = []
    flaky.before = staticmethod(lambda operation, path: fetched.append(path) if operation == "get_file" else None)
    remotes = [connect(FLAKY_URL, AdapterStore(mirror.root)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda remote: remote.fetch(FIRST), remotes))
    assert set(folders) == {mirror.root / "medical" / "1"}
    assert len(fetched) == len(set(fetched)) == 3


def test_a_full_local_disk_is_named(connect, flaky, origin, mirror, waits):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, mirror)
    remote.sync()

    def fill_disk(local):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flaky.after_get = staticmethod(fill_disk)
    with pytest.raises(StoreDiskError, match="No space left on device"):
        remote.fetch(FIRST)
    assert waits == []
    assert versions_in(mirror) == {}


def test_a_half_fetched_folder_in_the_cache_is_replaced(connect, flaky, origin, mirror):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, mirror)
    remote.sync()
    (mirror.root / "medical" / "1").mkdir()
    (mirror.root / "medical" / "1" / "README.md").write_text("half")
    remote.fetch(FIRST)
    mirror.verify(FIRST)


def test_a_torn_last_line_of_a_remote_history_does_not_count(connect, flaky, origin, mirror):
    connect(FLAKY_URL, origin).push(FIRST)
    write_remote(f"medical/{HISTORY_FILE}", read_remote(f"medical/{HISTORY_FILE}") + b'{"kind":"promo')
    connect(FLAKY_URL, mirror).sync()
    assert mirror.history("medical") == origin.history("medical")


def test_a_broken_remote_history_is_refused_and_the_others_are_mirrored(connect, flaky, origin, mirror, peft_folder):
    origin.publish(peft_folder, draft_for(peft_folder, name="zoology"))
    connect(FLAKY_URL, origin).push(FIRST)
    connect(FLAKY_URL, origin).push(Target("zoology", 1))
    write_remote(f"medical/{HISTORY_FILE}", b"<html>sign in</html>\n")
    with pytest.raises(
        IntegrityError, match=r"Line 1 of medical/history.jsonl at 'flaky://remote' is not a valid event"
    ):
        connect(FLAKY_URL, mirror).sync()
    assert mirror.history("medical") == ()
    assert mirror.history("zoology") == origin.history("zoology")


def test_the_manifest_is_pushed_after_the_files_and_the_history_after_all(connect, flaky, origin):
    written = []
    flaky.before = staticmethod(
        lambda operation, path: written.append(path.rpartition("/")[2]) if operation.startswith("p") else None
    )
    connect(FLAKY_URL, origin).push(FIRST)
    assert written == ["README.md", "adapter_config.json", WEIGHTS, "manifest.json", HISTORY_FILE]


@pytest.mark.parametrize("file", [WEIGHTS, "manifest.json", HISTORY_FILE])
def test_a_push_that_dies_shows_nothing_and_can_be_done_again(connect, flaky, origin, mirror, file):
    def die(operation, path):
        if operation in ("put_file", "pipe_file") and path.endswith(file):
            raise ConnectionError("cut")

    flaky.before = staticmethod(die)
    with pytest.raises(RemoteStoreError, match=f"Could not write 'medical/.*{file}'"):
        connect(FLAKY_URL, origin).push(FIRST)
    flaky.before = staticmethod(nothing)
    assert connect(FLAKY_URL, mirror).sync() == ()
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, mirror)
    remote.sync()
    assert remote.locate("medical") == FIRST


def test_a_push_that_another_push_overtook_says_so(connect, flaky, origin):
    def overtake(operation, path):
        if operation == "cat_file" and path.endswith(HISTORY_FILE):
            FlakyFileSystem.store[f"/remote/medical/{HISTORY_FILE}"].seek(0)
            FlakyFileSystem.store[f"/remote/medical/{HISTORY_FILE}"].write(b"#")

    flaky.before = staticmethod(overtake)
    with pytest.raises(RemoteConflictError, match="at the same time"):
        connect(FLAKY_URL, origin).push(FIRST)
