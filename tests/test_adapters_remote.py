import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from adapters.cli import app
from adapters.errors import (
    AdapterNotFoundError,
    IntegrityError,
    InvalidReferenceError,
    RemoteConflictError,
    RemoteStoreError,
    StoreDiskError,
)
from adapters.history import HISTORY_FILE
from adapters.integrity import digest_of
from adapters.manifest import FileEntry, Manifest
from adapters.reference import Target
from adapters.remote import RemoteStore
from adapters.retry import Retry
from adapters.store import AdapterStore
from tests.peft_folders import draft_for, lora_tensors, write_peft_folder

pytestmark = pytest.mark.slow

FIRST, SECOND = Target("medical", 1), Target("medical", 2)
WEIGHTS = "adapter_model.safetensors"
FLAKY_URL = "flaky://remote"


def nothing(*_):
    pass


class FlakyFileSystem(MemoryFileSystem):
    """A remote store in memory to which anything can happen."""

    protocol = "flaky"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
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


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return f"{request.param}://{tmp_path}/remote"


@pytest.fixture
def waits():
    """Seconds that were waited between attempts."""
    return []


@pytest.fixture
def connect(waits):
    return lambda url, store: RemoteStore(url, store, retry=Retry(sleep=waits.append, random=Random(0)))


@pytest.fixture
def origin(store, peft_folder):
    """The store of a trainer: `medical@1` is stable, `medical@2` has no alias."""
    for _ in range(2):
        store.publish(peft_folder, draft_for(peft_folder))
    store.promote("medical", 1)
    return store


@pytest.fixture
def cache(tmp_path):
    """The empty store of a server."""
    return AdapterStore(tmp_path / "cache")


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


def test_what_one_store_pushes_another_one_locates(connect, url, origin, cache):
    assert connect(url, origin).push(FIRST) == (FIRST,)
    remote = connect(url, cache)
    assert remote.sync() == ("medical",)
    assert remote.locate("medical") == FIRST
    assert cache.verify(FIRST) == origin.verify(FIRST)
    assert cache.resolve("medical") == FIRST
    assert cache.history("medical") == origin.history("medical")


def test_fetched_files_are_read_only_and_nothing_is_left_in_staging(connect, url, origin, cache):
    connect(url, origin).push(FIRST)
    remote = connect(url, cache)
    remote.sync()
    folder = remote.fetch(FIRST)
    assert {path.stat().st_mode & 0o222 for path in folder.iterdir()} == {0}
    assert [path for path in (cache.root / ".staging").iterdir() if path.is_dir()] == []


def test_a_second_sync_finds_nothing_new(connect, url, origin, cache):
    connect(url, origin).push(FIRST)
    remote = connect(url, cache)
    remote.sync()
    assert remote.sync() == ()
    assert connect(url, cache).sync() == ()


def test_a_promotion_reaches_the_other_store(connect, url, origin, cache):
    connect(url, origin).push(FIRST)
    remote = connect(url, cache)
    remote.sync()
    origin.set_aliases("medical", {"stable": 2, "canary": 1}, canary_weight=0.25)
    assert connect(url, origin).push(SECOND) == (SECOND,)
    assert remote.sync("medical") == ("medical",)
    assert remote.locate("medical") == SECOND
    assert cache.split("medical") == origin.split("medical")


def test_a_push_brings_what_the_aliases_point_to(connect, url, origin):
    assert connect(url, origin).push(SECOND) == (FIRST, SECOND)
    assert connect(url, origin).push(SECOND) == ()


def test_a_version_that_was_never_pushed_says_from_where_to_push_it(connect, url, origin, cache):
    connect(url, origin).push(FIRST)
    remote = connect(url, cache)
    remote.sync()
    with pytest.raises(RemoteStoreError, match=r"'medical@2', but its folder is not there.*adapters push medical@2"):
        remote.locate("medical@2")


@pytest.mark.parametrize("reference", ["medical@9", "medical@canary", "legal", "legal@1"])
def test_what_the_mirrored_history_does_not_know_is_not_found(connect, url, origin, cache, reference):
    connect(url, origin).push(FIRST)
    remote = connect(url, cache)
    remote.sync()
    with pytest.raises(AdapterNotFoundError, match=f"no '{reference}'"):
        remote.locate(reference)


def test_a_version_that_the_history_has_removed_is_not_fetched(connect, url, origin, cache):
    connect(url, origin).push(SECOND)
    origin.remove(SECOND)
    connect(url, origin).push(FIRST)
    remote = connect(url, cache)
    remote.sync()
    with pytest.raises(AdapterNotFoundError, match=r"no 'medical@2': the history of 'medical' has the versions \[1\]"):
        remote.fetch(SECOND)


def test_syncing_an_adapter_that_the_remote_lacks_is_not_found(connect, url, origin, cache):
    connect(url, origin).push(FIRST)
    with pytest.raises(AdapterNotFoundError, match="no 'legal' at"):
        connect(url, cache).sync("legal")
    with pytest.raises(InvalidReferenceError, match="no adapter name"):
        connect(url, cache).sync("../medical")


def test_an_empty_remote_says_to_push_first(connect, url, cache):
    with pytest.raises(RemoteStoreError, match=r"nothing at .*push a version there first"):
        connect(url, cache).sync()


def test_a_remote_that_is_back_after_two_failures_is_used(connect, flaky, origin, cache, waits):
    connect(FLAKY_URL, origin).push(FIRST)
    failures = iter([ConnectionError("away"), TimeoutError("slow")])

    def fail_twice(*_):
        for failure in failures:
            raise failure

    flaky.before = staticmethod(fail_twice)
    assert connect(FLAKY_URL, cache).sync() == ("medical",)
    assert len(waits) == 2
    assert waits[1] > waits[0]


def be_away(*_):
    raise ConnectionError("no route to host")


def test_a_remote_that_is_away_is_named_and_what_is_cached_goes_on_being_used(connect, flaky, origin, cache, waits):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, cache)
    remote.sync()
    remote.locate("medical")
    flaky.before = staticmethod(be_away)
    with pytest.raises(RemoteStoreError, match="list the adapters at 'flaky://remote': ConnectionError: no route"):
        remote.sync()
    assert len(waits) == 3
    assert remote.locate("medical") == FIRST
    assert cache.verify(FIRST).lora_name == "medical@1"


def test_a_remote_that_came_back_gives_what_it_could_not_give_before(connect, flaky, origin, cache):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, cache)
    remote.sync()
    flaky.before = staticmethod(be_away)
    with pytest.raises(RemoteStoreError, match="cached here can still be used"):
        remote.locate("medical")
    assert versions_in(cache) == {}
    flaky.before = staticmethod(nothing)
    assert remote.locate("medical") == FIRST


def test_refused_credentials_are_not_tried_again(connect, flaky, cache, waits):
    def refuse(*_):
        raise PermissionError("Forbidden")

    flaky.before = staticmethod(refuse)
    with pytest.raises(RemoteStoreError, match=r"permission denied \(Forbidden\)"):
        connect(FLAKY_URL, cache).sync()
    assert waits == []


def test_credentials_in_the_url_are_never_shown(connect, flaky, cache):
    with pytest.raises(RemoteStoreError) as refusal:
        connect("flaky://key:secret@remote", cache).sync()
    assert "secret" not in str(refusal.value)


def test_a_version_that_is_cut_off_on_the_way_is_fetched_again(connect, flaky, origin, cache, waits):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, cache)
    remote.sync()
    cuts = iter([100])

    def cut_once(local):
        for size_bytes in cuts:
            os.truncate(local, size_bytes)

    flaky.after_get = staticmethod(cut_once)
    remote.fetch(FIRST)
    cache.verify(FIRST)
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda c: c[:-1], r"'medical/1/adapter_model.safetensors' at .* has \d+ bytes", id="truncated"),
        pytest.param(lambda c: c[:-1] + bytes([c[-1] ^ 1]), r"'adapter_model.safetensors' has SHA-256", id="one bit"),
    ],
)
def test_bytes_that_are_not_the_manifests_are_refused_until_they_are_right(
    connect, flaky, origin, cache, damage, message
):
    connect(FLAKY_URL, origin).push(FIRST)
    good = read_remote(f"medical/1/{WEIGHTS}")
    write_remote(f"medical/1/{WEIGHTS}", damage(good))
    remote = connect(FLAKY_URL, cache)
    remote.sync()
    with pytest.raises(IntegrityError, match=message):
        remote.fetch(FIRST)
    assert versions_in(cache) == {}
    assert [path for path in (cache.root / ".staging").iterdir() if path.is_dir()] == []
    write_remote(f"medical/1/{WEIGHTS}", good)
    assert remote.locate("medical") == FIRST


@pytest.mark.parametrize("path", ["../../evil", "/etc/evil", "evil.bin", "sub/README.md"])
def test_a_remote_manifest_cannot_reach_out_of_the_version(connect, flaky, origin, cache, tmp_path, path):
    connect(FLAKY_URL, origin).push(FIRST)
    edit_remote_manifest(FIRST, lambda files: [*files, FileEntry(path=path, size_bytes=0, sha256="0" * 64)])
    fetched = []
    remote = connect(FLAKY_URL, cache)
    remote.sync()
    flaky.before = staticmethod(lambda operation, path: fetched.append(path) if operation == "get_file" else None)
    with pytest.raises(IntegrityError, match=f"its manifest lists '{path}'; a version holds only"):
        remote.fetch(FIRST)
    assert fetched == []


def test_names_that_are_no_adapters_are_never_touched(connect, flaky, origin, cache, tmp_path):
    connect(FLAKY_URL, origin).push(FIRST)
    for name in ("..", ".hidden", "Evil", "a b", "x" * 64):
        FlakyFileSystem.store[f"/remote/{name}/history.jsonl"] = FlakyFileSystem.store["/remote/medical/history.jsonl"]
    before = sorted(path.name for path in tmp_path.iterdir())
    assert connect(FLAKY_URL, cache).sync() == ("medical",)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == before
    assert sorted(path.name for path in cache.root.iterdir()) == ["medical"]


def test_files_that_the_manifest_does_not_list_are_not_fetched(connect, flaky, origin, cache):
    connect(FLAKY_URL, origin).push(FIRST)
    write_remote("medical/1/evil.bin", b"\x80")
    remote = connect(FLAKY_URL, cache)
    remote.sync()
    assert not (remote.fetch(FIRST) / "evil.bin").exists()


def test_however_many_ask_a_version_is_fetched_once(connect, flaky, origin, cache):
    connect(FLAKY_URL, origin).push(FIRST)
    connect(FLAKY_URL, cache).sync()
    fetched = []
    flaky.before = staticmethod(lambda operation, path: fetched.append(path) if operation == "get_file" else None)
    remotes = [connect(FLAKY_URL, AdapterStore(cache.root)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda remote: remote.fetch(FIRST), remotes))
    assert set(folders) == {cache.root / "medical" / "1"}
    assert len(fetched) == len(set(fetched)) == 3


def test_a_full_local_disk_is_named(connect, flaky, origin, cache, waits):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, cache)
    remote.sync()

    def fill_disk(local):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flaky.after_get = staticmethod(fill_disk)
    with pytest.raises(StoreDiskError, match="No space left on device"):
        remote.fetch(FIRST)
    assert waits == []
    assert versions_in(cache) == {}


def test_a_half_fetched_folder_in_the_cache_is_replaced(connect, flaky, origin, cache):
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, cache)
    remote.sync()
    (cache.root / "medical" / "1").mkdir()
    (cache.root / "medical" / "1" / "README.md").write_text("half")
    remote.fetch(FIRST)
    cache.verify(FIRST)


def test_a_torn_last_line_of_a_remote_history_does_not_count(connect, flaky, origin, cache):
    connect(FLAKY_URL, origin).push(FIRST)
    write_remote(f"medical/{HISTORY_FILE}", read_remote(f"medical/{HISTORY_FILE}") + b'{"kind":"promo')
    connect(FLAKY_URL, cache).sync()
    assert cache.history("medical") == origin.history("medical")


def test_a_broken_remote_history_is_refused_and_the_others_are_mirrored(connect, flaky, origin, cache, peft_folder):
    origin.publish(peft_folder, draft_for(peft_folder, name="zoology"))
    connect(FLAKY_URL, origin).push(FIRST)
    connect(FLAKY_URL, origin).push(Target("zoology", 1))
    write_remote(f"medical/{HISTORY_FILE}", b"<html>sign in</html>\n")
    with pytest.raises(IntegrityError, match=r"Line 1 of medical/history.jsonl at 'flaky://remote' is no event"):
        connect(FLAKY_URL, cache).sync()
    assert cache.history("medical") == ()
    assert cache.history("zoology") == origin.history("zoology")


def test_a_local_rollback_is_never_undone_by_a_sync(connect, url, origin, cache):
    origin.promote("medical", 2)
    connect(url, origin).push(FIRST)
    remote = connect(url, cache)
    remote.sync()
    remote.fetch(FIRST)
    remote.fetch(SECOND)
    cache.rollback("medical", reason="error rate")
    assert connect(url, cache).sync() == ()
    assert cache.resolve("medical") == FIRST


def test_histories_that_have_grown_apart_say_so_and_stay_as_they_are(connect, url, origin, cache):
    connect(url, origin).push(SECOND)
    remote = connect(url, cache)
    remote.sync()
    remote.fetch(SECOND)
    cache.promote("medical", 2, reason="here")
    origin.promote("medical", 2, reason="there")
    connect(url, origin).push(SECOND)
    with pytest.raises(RemoteConflictError, match=r"histories of 'medical' .* differ after event 3"):
        remote.sync()
    assert cache.history("medical")[-1].reason == "here"
    with pytest.raises(RemoteConflictError, match="differ after event 3"):
        connect(url, cache).push(SECOND)


def test_a_store_that_is_behind_must_pull_before_it_pushes(connect, url, origin, cache):
    connect(url, origin).push(SECOND)
    remote = connect(url, cache)
    remote.sync()
    remote.fetch(SECOND)
    origin.promote("medical", 2)
    connect(url, origin).push(SECOND)
    with pytest.raises(RemoteConflictError, match=r"is ahead of this store's. Pull it first"):
        remote.push(SECOND)


def test_a_pushed_version_is_never_overwritten_by_another(connect, url, origin, tmp_path):
    connect(url, origin).push(SECOND)
    # The same clock, so that the histories are the same, byte for byte.
    other = AdapterStore(tmp_path / "other", clock=lambda: datetime(2026, 11, 21, tzinfo=UTC))
    source = write_peft_folder(tmp_path / "source", tensors=lora_tensors(seed=1))
    for _ in range(2):
        other.publish(source, draft_for(source))
    other.promote("medical", 1)
    with pytest.raises(RemoteConflictError, match=r"'medical@1' at .* has digest \w{12}, here it has \w{12}"):
        connect(url, other).push(FIRST)
    connect(url, AdapterStore(tmp_path / "cache")).sync()


def test_a_damaged_version_is_not_pushed(connect, url, origin):
    (origin.folder(FIRST) / "README.md").unlink()
    with pytest.raises(IntegrityError, match=r"medical@1 lacks its file 'README\.md'"):
        connect(url, origin).push(FIRST)


def test_the_manifest_is_pushed_after_the_files_and_the_history_after_all(connect, flaky, origin):
    written = []
    flaky.before = staticmethod(
        lambda operation, path: written.append(path.rpartition("/")[2]) if operation.startswith("p") else None
    )
    connect(FLAKY_URL, origin).push(FIRST)
    assert written == ["README.md", "adapter_config.json", WEIGHTS, "manifest.json", HISTORY_FILE]


@pytest.mark.parametrize("file", [WEIGHTS, "manifest.json", HISTORY_FILE])
def test_a_push_that_dies_shows_nothing_and_can_be_done_again(connect, flaky, origin, cache, file):
    def die(operation, path):
        if operation in ("put_file", "pipe_file") and path.endswith(file):
            raise ConnectionError("cut")

    flaky.before = staticmethod(die)
    with pytest.raises(RemoteStoreError, match=f"Could not write 'medical/.*{file}'"):
        connect(FLAKY_URL, origin).push(FIRST)
    flaky.before = staticmethod(nothing)
    assert connect(FLAKY_URL, cache).sync() == ()
    connect(FLAKY_URL, origin).push(FIRST)
    remote = connect(FLAKY_URL, cache)
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


def test_a_version_whose_publisher_died_is_recorded_before_it_is_pushed(connect, url, origin, cache):
    path = origin.root / "medical" / HISTORY_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    connect(url, origin).push(SECOND)
    remote = connect(url, cache)
    remote.sync()
    assert remote.locate("medical@2") == SECOND


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oss://bucket/adapters", r"oss:// needs a package that is not installed. Install it: `pip install ossfs`"),
        ("nonsense://x", "'nonsense://x' cannot be used: Protocol not known: nonsense"),
    ],
)
def test_a_url_that_cannot_be_used_says_what_to_do(connect, cache, url, message):
    with pytest.raises(RemoteStoreError, match=message):
        connect(url, cache)


@pytest.fixture
def lorikeet(tmp_path):
    def run(home, *arguments):
        environment = {"COLUMNS": "200", "NO_COLOR": "1"}
        return CliRunner().invoke(app, [*arguments, "--home", str(tmp_path / home)], env=environment)

    return run


@pytest.fixture
def pushed(lorikeet, origin, tmp_path):
    """A folder as a remote store, with both versions of `medical`."""
    (tmp_path / "home").mkdir()
    origin.root.rename(tmp_path / "home" / "adapters")
    url = str(tmp_path / "remote")
    assert "pushed medical@1, medical@2 to" in lorikeet("home", "push", "medical@2", url).stdout
    return url


def test_pull_brings_what_has_an_alias(lorikeet, pushed):
    result = lorikeet("other", "pull", pushed)
    assert result.exit_code == 0
    assert "medical@1 is here" in result.stdout
    assert "medical@1" in lorikeet("other", "list").stdout
    assert "medical@2" not in lorikeet("other", "list").stdout


def test_pull_brings_the_version_that_is_named(lorikeet, pushed):
    assert "medical@2 is here" in lorikeet("other", "pull", pushed, "medical@2").stdout


def test_pull_of_an_unknown_adapter_is_one_line(lorikeet, pushed):
    result = lorikeet("other", "pull", pushed, "legal")
    assert result.exit_code == 1
    assert "There is no 'legal' at" in result.stderr


def test_a_remote_history_is_json_lines_like_the_local_one(lorikeet, pushed):
    lines = Path(pushed, "medical", HISTORY_FILE).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["published", "published", "promoted"]
