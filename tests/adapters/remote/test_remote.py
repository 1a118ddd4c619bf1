"""What goes from one store through a remote one to another, and when two histories do not agree."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.cli import app
from adapters.errors import (
    AdapterNotFoundError,
    IntegrityError,
    InvalidReferenceError,
    RemoteConflictError,
    RemoteStoreError,
)
from adapters.reference import Target
from adapters.store.history import HISTORY_FILE
from adapters.store.store import AdapterStore
from tests.peft_folders import EVALUATION, draft_for, lora_tensors, write_peft_folder
from tests.remote_stores import FIRST, SECOND


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return f"{request.param}://{tmp_path}/remote"


def test_what_one_store_pushes_another_one_locates(connect, url, origin, mirror):
    assert connect(url, origin).push(FIRST) == (FIRST,)
    remote = connect(url, mirror)
    assert remote.sync() == ("medical",)
    assert remote.locate("medical") == FIRST
    assert mirror.verify(FIRST) == origin.verify(FIRST)
    assert mirror.resolve("medical") == FIRST
    assert mirror.history("medical") == origin.history("medical")


def test_held_out_questions_travel_with_their_version(connect, url, origin, mirror, peft_folder):
    (peft_folder / "held_out.json").write_text('{"max_tokens": 8}')
    third = Target("medical", origin.publish(peft_folder, draft_for(peft_folder)).version)
    connect(url, origin).push(third)
    remote = connect(url, mirror)
    remote.sync()
    held_out = remote.fetch(third) / "held_out.json"
    assert (held_out.read_text(), held_out.stat().st_mode & 0o777) == ('{"max_tokens": 8}', 0o400)


def test_items_of_an_evaluation_travel_with_it_alone(connect, url, origin, mirror, peft_folder):
    (peft_folder / "evaluation.jsonl").write_text('{"id": "1"}\n')
    foreign = origin.publish(peft_folder, draft_for(peft_folder))
    assert "evaluation.jsonl" not in {file.path for file in foreign.files}
    own = Target("medical", origin.publish(peft_folder, draft_for(peft_folder, evaluation=EVALUATION)).version)
    connect(url, origin).push(own)
    remote = connect(url, mirror)
    remote.sync()
    items = remote.fetch(own) / "evaluation.jsonl"
    assert (items.read_text(), items.stat().st_mode & 0o777) == ('{"id": "1"}\n', 0o400)


def test_fetched_files_are_read_only_and_nothing_is_left_in_staging(connect, url, origin, mirror):
    connect(url, origin).push(FIRST)
    remote = connect(url, mirror)
    remote.sync()
    folder = remote.fetch(FIRST)
    assert {path.stat().st_mode & 0o222 for path in folder.iterdir()} == {0}
    assert [path for path in (mirror.root / ".staging").iterdir() if path.is_dir()] == []


def test_a_second_sync_finds_nothing_new(connect, url, origin, mirror):
    connect(url, origin).push(FIRST)
    remote = connect(url, mirror)
    remote.sync()
    assert remote.sync() == ()
    assert connect(url, mirror).sync() == ()


def test_a_promotion_reaches_the_other_store(connect, url, origin, mirror):
    connect(url, origin).push(FIRST)
    remote = connect(url, mirror)
    remote.sync()
    origin.set_aliases("medical", {"stable": 2, "canary": 1}, canary_weight=0.25)
    assert connect(url, origin).push(SECOND) == (SECOND,)
    assert remote.sync("medical") == ("medical",)
    assert remote.locate("medical") == SECOND
    assert mirror.split("medical") == origin.split("medical")


def test_a_push_brings_what_the_aliases_point_to(connect, url, origin):
    assert connect(url, origin).push(SECOND) == (FIRST, SECOND)
    assert connect(url, origin).push(SECOND) == ()


def test_a_version_that_was_never_pushed_says_from_where_to_push_it(connect, url, origin, mirror):
    connect(url, origin).push(FIRST)
    remote = connect(url, mirror)
    remote.sync()
    with pytest.raises(RemoteStoreError, match=r"'medical@2', but its folder is missing.*adapters push medical@2"):
        remote.locate("medical@2")


@pytest.mark.parametrize("reference", ["medical@9", "medical@canary", "legal", "legal@1"])
def test_what_the_mirrored_history_does_not_know_is_not_found(connect, url, origin, mirror, reference):
    connect(url, origin).push(FIRST)
    remote = connect(url, mirror)
    remote.sync()
    with pytest.raises(AdapterNotFoundError, match=f"no '{reference}'"):
        remote.locate(reference)


def test_a_version_that_the_history_has_removed_is_not_fetched(connect, url, origin, mirror):
    connect(url, origin).push(SECOND)
    origin.remove(SECOND)
    connect(url, origin).push(FIRST)
    remote = connect(url, mirror)
    remote.sync()
    with pytest.raises(AdapterNotFoundError, match=r"no 'medical@2': the history of 'medical' has the versions \[1\]"):
        remote.fetch(SECOND)


def test_syncing_an_adapter_that_the_remote_lacks_is_not_found(connect, url, origin, mirror):
    connect(url, origin).push(FIRST)
    with pytest.raises(AdapterNotFoundError, match="no 'legal' at"):
        connect(url, mirror).sync("legal")
    with pytest.raises(InvalidReferenceError, match="not a valid adapter name"):
        connect(url, mirror).sync("../medical")


def test_an_empty_remote_says_to_push_first(connect, url, mirror):
    with pytest.raises(RemoteStoreError, match=r"Nothing exists at .*push a version there first"):
        connect(url, mirror).sync()


def test_a_local_rollback_is_never_undone_by_a_sync(connect, url, origin, mirror):
    origin.promote("medical", 2)
    connect(url, origin).push(FIRST)
    remote = connect(url, mirror)
    remote.sync()
    remote.fetch(FIRST)
    remote.fetch(SECOND)
    mirror.rollback("medical", reason="error rate")
    assert connect(url, mirror).sync() == ()
    assert mirror.resolve("medical") == FIRST


def test_histories_that_have_grown_apart_say_so_and_stay_as_they_are(connect, url, origin, mirror):
    connect(url, origin).push(SECOND)
    remote = connect(url, mirror)
    remote.sync()
    remote.fetch(SECOND)
    mirror.promote("medical", 2, reason="here")
    origin.promote("medical", 2, reason="there")
    connect(url, origin).push(SECOND)
    with pytest.raises(RemoteConflictError, match=r"histories of 'medical' .* diverge after event 3"):
        remote.sync()
    assert mirror.history("medical")[-1].reason == "here"
    with pytest.raises(RemoteConflictError, match="diverge after event 3"):
        connect(url, mirror).push(SECOND)


def test_a_store_that_is_behind_must_pull_before_it_pushes(connect, url, origin, mirror):
    connect(url, origin).push(SECOND)
    remote = connect(url, mirror)
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
    with pytest.raises(RemoteConflictError, match=r"'medical@1' at .* has digest \w{12}, the local version has \w{12}"):
        connect(url, other).push(FIRST)
    connect(url, AdapterStore(tmp_path / "mirror")).sync()


def test_a_damaged_version_is_not_pushed(connect, url, origin):
    (origin.folder(FIRST) / "README.md").unlink()
    with pytest.raises(IntegrityError, match=r"medical@1 lacks its file 'README\.md'"):
        connect(url, origin).push(FIRST)


def test_a_version_whose_publisher_died_is_recorded_before_it_is_pushed(connect, url, origin, mirror):
    path = origin.root / "medical" / HISTORY_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    connect(url, origin).push(SECOND)
    remote = connect(url, mirror)
    remote.sync()
    assert remote.locate("medical@2") == SECOND


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oss://bucket/adapters", r"oss:// needs a package that is not installed. Install it: `pip install ossfs`"),
        ("nonsense://x", "'nonsense://x' cannot be used: Protocol not known: nonsense"),
    ],
)
def test_a_url_that_cannot_be_used_says_what_to_do(connect, mirror, url, message):
    with pytest.raises(RemoteStoreError, match=message):
        connect(url, mirror)


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
