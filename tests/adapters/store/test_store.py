import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapters.errors import (
    AdapterInUseError,
    AdapterNotFoundError,
    BaseModelMismatchError,
    IntegrityError,
    InvalidAdapterError,
    InvalidReferenceError,
    UnsupportedAdapterError,
)
from adapters.fingerprint import Fingerprint
from adapters.reference import Target
from adapters.store.store import AdapterStore
from adapters.store.usage import in_use
from tests.peft_folders import BASE, draft_for, lora_tensors, write_peft_folder


@pytest.fixture
def published(store, peft_folder):
    """Publish `medical` this many times."""

    def publish(times):
        return [store.publish(peft_folder, draft_for(peft_folder)) for _ in range(times)]

    return publish


def everything_in(store):
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*"))


def test_a_published_folder_holds_pefts_files_and_the_manifest(store, peft_folder):
    (peft_folder / "tokenizer.json").write_text("{}")
    manifest = store.publish(peft_folder, draft_for(peft_folder))
    folder = store.folder(Target("medical", 1))
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    assert store.manifest(Target("medical", 1)) == manifest
    assert manifest.lora_name == "medical@1"
    assert manifest.created_at == "2026-11-21T00:00:00+00:00"


def test_the_copied_files_are_byte_for_byte_the_source_and_read_only(store, peft_folder, published):
    published(1)
    copy = store.folder(Target("medical", 1)) / "adapter_model.safetensors"
    assert copy.read_bytes() == (peft_folder / "adapter_model.safetensors").read_bytes()
    assert not copy.stat().st_mode & stat.S_IWUSR


def test_each_publish_is_the_next_version(store, published):
    published(3)
    assert store.versions("medical") == [1, 2, 3]
    assert store.names() == ["medical"]


def test_the_same_bytes_have_the_same_digest_under_every_version(published):
    first, second = published(2)
    assert first.digest == second.digest


def test_concurrent_publishers_get_distinct_versions(store, peft_folder):
    draft = draft_for(peft_folder)
    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(lambda _: store.publish(peft_folder, draft), range(8)))
    assert sorted(manifest.version for manifest in manifests) == list(range(1, 9))
    assert len(store.history("medical")) == 8


def test_a_removed_version_is_never_given_out_again(store, published):
    published(2)
    store.remove(Target("medical", 2))
    (manifest,) = published(1)
    assert manifest.version == 3


def test_a_refused_folder_leaves_no_trace(store, tmp_path):
    source = write_peft_folder(tmp_path / "qalora", use_qalora=True)
    with pytest.raises(UnsupportedAdapterError, match="Adapter 'medical' cannot be served: use_qalora is set"):
        store.publish(source, draft_for(source))
    assert everything_in(store) == []


def test_a_publish_that_dies_halfway_leaves_no_version(store, peft_folder, published):
    published(1)
    before = everything_in(store)

    def broken_clock():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        AdapterStore(store.root, clock=broken_clock).publish(peft_folder, draft_for(peft_folder))
    assert everything_in(store) == before


def test_a_link_in_the_folder_is_refused(store, peft_folder):
    (peft_folder / "README.md").unlink()
    (peft_folder / "README.md").symlink_to(peft_folder / "adapter_config.json")
    with pytest.raises(InvalidAdapterError, match=r"'README\.md' is a symbolic link"):
        store.publish(peft_folder, draft_for(peft_folder))


def test_a_folder_that_contradicts_its_draft_is_refused(store, peft_folder, tmp_path):
    other = write_peft_folder(tmp_path / "other", r=4, tensors=lora_tensors(rank=4))
    with pytest.raises(InvalidAdapterError, match="read_lora_spec"):
        store.publish(peft_folder, draft_for(other))


def test_a_fingerprint_of_another_base_is_refused(store, peft_folder):
    fingerprint = Fingerprint(base_digest="e" * 64, chat_template_sha256="", stop_token_ids=(), modules=(), prompts=())
    (peft_folder / "fingerprint.json").write_text(fingerprint.model_dump_json())
    with pytest.raises(BaseModelMismatchError, match="digest dddddddddddd, but its fingerprint has eeeeeeeeeeee"):
        store.publish(peft_folder, draft_for(peft_folder))


def test_a_broken_fingerprint_is_refused(store, peft_folder):
    (peft_folder / "fingerprint.json").write_text("{}")
    with pytest.raises(
        InvalidAdapterError, match=r"fingerprint\.json of 'medical' cannot be used.* broken at base_digest"
    ):
        store.publish(peft_folder, draft_for(peft_folder))


def test_publish_refuses_another_base_than_the_drafts(store, peft_folder, base_folder):
    with pytest.raises(BaseModelMismatchError, match="the base 'tiny' has"):
        store.publish(peft_folder, draft_for(peft_folder, base=BASE), base_folder=base_folder)


@pytest.mark.parametrize("name", ["Medical", "../medical", "", ".staging", "a" * 64, "medical@1"])
def test_a_bad_adapter_name_is_refused(store, peft_folder, name):
    with pytest.raises(InvalidReferenceError, match="is not a valid adapter name"):
        store.publish(peft_folder, draft_for(peft_folder, name=name))
    with pytest.raises(InvalidReferenceError, match="is not a valid adapter name"):
        store.versions(name)


def test_references_resolve_to_versions(store, published):
    published(2)
    store.promote("medical", 1)
    store.promote("medical", 2, alias="canary")
    assert store.resolve("medical") == Target("medical", 1)
    assert store.resolve("medical@canary") == Target("medical", 2)
    assert str(store.resolve("medical@2")) == "medical@2"


@pytest.mark.parametrize("reference", ["medical@3", "medical@canary"])
def test_an_unknown_version_or_alias_names_what_exists(store, published, reference):
    published(2)
    store.promote("medical", 2)
    with pytest.raises(AdapterNotFoundError, match=rf"no '{reference}'.*versions \[1, 2\] and the aliases stable = 2"):
        store.resolve(reference)


def test_an_unknown_adapter_names_what_exists(store, published):
    published(1)
    with pytest.raises(AdapterNotFoundError, match=r"no 'legal'.*The store has \['medical'\]"):
        store.resolve("legal")


def test_an_empty_store_says_so(store):
    assert store.names() == []
    with pytest.raises(AdapterNotFoundError, match="The store is empty"):
        store.resolve("medical")


@pytest.mark.parametrize("reference", ["../etc/passwd", "medical@0", "medical@", "Medical"])
def test_a_bad_reference_is_refused(store, reference):
    with pytest.raises(InvalidReferenceError, match="is not a model reference"):
        store.resolve(reference)


@pytest.mark.slow
def test_promote_records_where_the_alias_was_and_why_it_moved(store, published):
    published(2)
    store.promote("medical", 1)
    store.promote("medical", 2, reason="gain 0.71")
    event = store.history("medical")[-1]
    assert (event.kind, event.version, event.previous, event.reason) == ("promoted", 2, 1, "gain 0.71")


def test_promoting_the_current_version_changes_nothing(store, published):
    published(1)
    store.promote("medical", 1)
    before = store.history("medical")
    store.promote("medical", 1)
    assert store.history("medical") == before


def test_promoting_an_unknown_version_names_what_exists(store, published):
    published(1)
    with pytest.raises(AdapterNotFoundError, match=r"no 'medical@9'.*versions \[1\]"):
        store.promote("medical", 9)


def test_rollback_returns_to_the_previous_version(store, published):
    published(2)
    store.promote("medical", 1)
    store.promote("medical", 2)
    assert store.rollback("medical", reason="error rate") == Target("medical", 1)
    assert store.aliases("medical") == {"stable": 1}


def test_rollback_without_an_earlier_version_is_refused(store, published):
    published(2)
    store.promote("medical", 1)
    with pytest.raises(AdapterNotFoundError, match=r"no earlier one to restore.*has \[1, 2\]"):
        store.rollback("medical")


def test_rollback_of_an_unknown_alias_is_refused(store, published):
    published(1)
    with pytest.raises(AdapterNotFoundError, match="no 'medical@canary'"):
        store.rollback("medical", alias="canary")


def test_a_version_with_an_alias_is_not_removed(store, published):
    published(2)
    store.promote("medical", 1)
    store.promote("medical", 1, alias="canary")
    with pytest.raises(AdapterInUseError, match="'medical@1' is canary and stable"):
        store.remove(Target("medical", 1))
    assert store.versions("medical") == [1, 2]


def test_a_version_that_a_server_has_loaded_is_not_removed(store, published):
    published(2)
    with in_use(store.root, Target("medical", 1), "lorikeet serve on port 8000"):
        with pytest.raises(AdapterInUseError, match=r"'medical@1' is loaded by lorikeet serve on port 8000\. Unload"):
            store.remove(Target("medical", 1))
        assert store.gc(keep_last=0).removed == (Target("medical", 2),)
    store.remove(Target("medical", 1))
    assert store.versions("medical") == []


def test_a_removed_version_is_gone_and_recorded(store, published):
    published(1)
    store.remove(Target("medical", 1), reason="a test")
    assert store.names() == []
    assert store.history("medical")[-1].kind == "removed"
    with pytest.raises(AdapterNotFoundError, match="medical@1"):
        store.folder(Target("medical", 1))


def test_gc_removes_what_a_crashed_publisher_left(store, published):
    published(1)
    (store.root / ".staging" / "crashed").mkdir()
    (store.root / ".staging" / "crashed" / "adapter_model.safetensors").write_text("half")
    assert store.gc().num_staged == 1
    assert not (store.root / ".staging" / "crashed").exists()


def test_gc_keeps_every_version_by_default(store, published):
    published(3)
    store.gc()
    assert store.versions("medical") == [1, 2, 3]


def test_gc_keeps_the_newest_versions_and_those_with_an_alias(store, published):
    published(5)
    store.promote("medical", 2)
    collected = store.gc(keep_last=1)
    assert store.versions("medical") == [2, 5]
    assert collected.removed == (Target("medical", 1), Target("medical", 3), Target("medical", 4))


def test_gc_with_keep_last_zero_keeps_only_versions_with_an_alias(store, published):
    published(2)
    store.promote("medical", 1)
    store.gc(keep_last=0)
    assert store.versions("medical") == [1]


def test_gc_refuses_a_negative_keep_last(store):
    with pytest.raises(ValueError, match="got -1"):
        store.gc(keep_last=-1)


def test_an_unreadable_manifest_is_an_integrity_error(store, published):
    published(1)
    path = store.folder(Target("medical", 1)) / "manifest.json"
    path.chmod(0o644)
    path.write_text('{"torn')
    with pytest.raises(IntegrityError, match="medical@1 is broken"):
        store.manifest(Target("medical", 1))


def test_a_manifest_of_another_version_is_an_integrity_error(store, published):
    published(2)
    path = store.folder(Target("medical", 1)) / "manifest.json"
    path.unlink()
    path.write_bytes((store.folder(Target("medical", 2)) / "manifest.json").read_bytes())
    with pytest.raises(IntegrityError, match="medical@1 holds the manifest of medical@2"):
        store.manifest(Target("medical", 1))


def test_an_unfinished_version_folder_does_not_exist_for_readers(store, published):
    published(1)
    (store.root / "medical" / "2").mkdir()
    assert store.versions("medical") == [1]
