import pytest

from adapters.errors import IntegrityError
from adapters.reference import Target
from tests.peft_folders import draft_for

TARGET = Target("medical", 1)


@pytest.fixture
def folder(store, peft_folder):
    store.publish(peft_folder, draft_for(peft_folder))
    return store.folder(TARGET)


def overwrite(path, content):
    path.chmod(0o644)
    path.write_bytes(content)


def test_an_untouched_version_verifies(store, folder):
    assert store.verify(TARGET).lora_name == "medical@1"


def test_one_flipped_bit_is_found_and_both_hashes_named(store, folder):
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    overwrite(path, bytes(content))
    with pytest.raises(IntegrityError, match=r"'adapter_model\.safetensors' has SHA-256 \w{64}.*says \w{64}"):
        store.verify(TARGET)


def test_another_size_is_named(store, folder):
    overwrite(folder / "README.md", b"short")
    with pytest.raises(IntegrityError, match=r"'README\.md' has 5 bytes, its manifest says \d+"):
        store.verify(TARGET)


def test_a_missing_file_is_named(store, folder):
    (folder / "README.md").unlink()
    with pytest.raises(IntegrityError, match=r"lacks its file 'README\.md'"):
        store.verify(TARGET)


def test_a_file_replaced_by_a_link_is_not_accepted(store, folder, peft_folder):
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(peft_folder / "README.md")
    with pytest.raises(IntegrityError, match=r"lacks its file 'README\.md'"):
        store.verify(TARGET)


def test_an_added_file_is_named(store, folder):
    (folder / "evil.bin").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"holds 'evil\.bin', which its manifest does not list"):
        store.verify(TARGET)


def test_a_forged_digest_is_found(store, folder):
    path = folder / "manifest.json"
    overwrite(path, path.read_bytes().replace(store.manifest(TARGET).digest.encode(), b"0" * 64))
    with pytest.raises(IntegrityError, match=r"give digest \w{64}, but it says 0{64}"):
        store.verify(TARGET)
