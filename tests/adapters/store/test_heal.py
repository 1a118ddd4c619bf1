"""What a killed process leaves, made by hand; the processes that are really killed are in test_adapters_crash."""

import pytest

from adapters.errors import AdapterNotFoundError
from adapters.reference import Target
from adapters.store.history import HISTORY_FILE
from tests.peft_folders import draft_for


@pytest.fixture
def publish(store, peft_folder):
    """Publish `medical` once more."""
    return lambda: store.publish(peft_folder, draft_for(peft_folder))


@pytest.fixture
def history_path(store):
    return store.root / "medical" / HISTORY_FILE


def kinds(store):
    return [(event.kind, event.version) for event in store.history("medical")]


def drop_last_line(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def test_the_next_writer_records_a_version_whose_publisher_died(store, publish, history_path):
    publish()
    publish()
    drop_last_line(history_path)
    assert store.versions("medical") == [1, 2]
    store.promote("medical", 1)
    assert kinds(store) == [("published", 1), ("published", 2), ("promoted", 1)]
    assert store.history("medical")[1].reason == "recovered"


def test_a_lost_history_is_made_anew_from_the_folders(store, publish, history_path):
    publish()
    publish()
    history_path.unlink()
    store.gc()
    assert kinds(store) == [("published", 1), ("published", 2)]


def test_a_whole_history_is_left_alone(store, publish, history_path):
    publish()
    before = history_path.read_bytes()
    store.heal("medical")
    assert history_path.read_bytes() == before


@pytest.fixture
def half_removed(store, publish):
    """A store in which `medical@1` is recorded as removed, and still there."""
    publish()
    publish()
    folder = store.root / "medical" / "1"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    store.remove(Target("medical", 1))
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return store


def test_a_removed_version_whose_folder_is_still_there_is_gone_for_readers(half_removed):
    assert half_removed.versions("medical") == [2]
    with pytest.raises(AdapterNotFoundError, match="no 'medical@1'"):
        half_removed.resolve("medical@1")
    with pytest.raises(AdapterNotFoundError, match="no 'medical@1'"):
        half_removed.promote("medical", 1)


@pytest.mark.parametrize("finish", ["promote", "gc", "publish"])
def test_the_next_writer_or_gc_finishes_the_removal(half_removed, publish, finish):
    actions = {"promote": lambda: half_removed.promote("medical", 2), "gc": half_removed.gc, "publish": publish}
    actions[finish]()
    assert not (half_removed.root / "medical" / "1").exists()
    assert kinds(half_removed).count(("published", 1)) == 1


def test_an_adapter_of_which_everything_is_removed_is_finished_by_gc(half_removed):
    half_removed.remove(Target("medical", 2))
    (half_removed.root / "medical" / "2").mkdir()
    assert half_removed.names() == []
    half_removed.gc()
    assert not (half_removed.root / "medical" / "2").exists()


def test_a_half_deleted_folder_is_deleted_by_the_next_writer(store, publish):
    publish()
    discarded = store.root / "medical" / ".discarded-7"
    discarded.mkdir()
    (discarded / "README.md").write_text("half")
    publish()
    assert not discarded.exists()


def test_a_half_written_history_beside_the_real_one_is_ignored_and_deleted(store, publish, history_path):
    publish()
    half = history_path.with_name(f".{HISTORY_FILE}.new")
    half.write_text('{"kind":"promo')
    assert kinds(store) == [("published", 1)]
    store.gc()
    assert not half.exists()


@pytest.mark.parametrize("num_bytes", [1, 10, 40, -1])
def test_a_torn_last_line_is_cut_and_never_glued_to_the_next_event(store, publish, history_path, num_bytes):
    publish()
    whole = history_path.read_bytes()
    history_path.write_bytes(whole + whole[:num_bytes])
    assert kinds(store) == [("published", 1)]
    store.promote("medical", 1)
    assert kinds(store) == [("published", 1), ("promoted", 1)]
    assert history_path.read_bytes().startswith(whole)


def test_an_unfinished_folder_with_a_number_is_passed_over(store, publish):
    publish()
    (store.root / "medical" / "2").mkdir()
    (store.root / "medical" / "2" / "adapter_model.safetensors").write_bytes(b"half")
    assert publish().version == 3


@pytest.mark.parametrize("name", ["007", "0", "²", "+1", "1.5", "3 "])
def test_a_folder_that_only_looks_like_a_version_is_none(store, publish, name):
    publish()
    folder = store.root / "medical" / name
    folder.mkdir()
    (folder / "manifest.json").write_bytes((store.root / "medical" / "1" / "manifest.json").read_bytes())
    assert store.versions("medical") == [1]


def test_a_broken_history_leaves_the_other_adapters_alone(store, publish, peft_folder, history_path, caplog):
    publish()
    store.publish(peft_folder, draft_for(peft_folder, name="legal"))
    history_path.write_text("nonsense\n")
    assert store.names() == ["legal"]
    assert "skipping medical: Line 1 of medical/history.jsonl is not a valid event: 'nonsense'" in caplog.text
