"""Folders and version folders that were made to harm: each is refused by name, and nothing of it stays."""

import json
import os

import pytest
import torch

from adapters.bases import read_base
from adapters.errors import BaseModelMismatchError, IntegrityError, InvalidAdapterError
from adapters.lint.lint import lint_folder
from adapters.reference import Target
from adapters.store.integrity import digest_of, file_entry
from adapters.store.manifest import FileEntry, Manifest
from tests.peft_folders import (
    EVALUATION,
    HIDDEN,
    MODULES,
    RANK,
    draft_for,
    lora_tensors,
    write_base_folder,
    write_peft_folder,
)

A, B = (f"base_model.model.{MODULES[0]}.lora_{side}.weight" for side in "AB")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGET = Target("medical", 1)


def read_weights(folder):
    """The header of the weights file, and the bytes after it."""
    content = (folder / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def write_weights(folder, header_text, data):
    header = header_text.encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data)


def header_with(name, **changes):
    """Change one tensor's entry in the header."""

    def damage(folder):
        header, data = read_weights(folder)
        header[name] |= changes
        write_weights(folder, json.dumps(header), data)

    return damage


def same_bytes_twice(folder):
    header, data = read_weights(folder)
    header[B]["data_offsets"] = header[A]["data_offsets"]
    write_weights(folder, json.dumps(header), data)


def tensor_twice(folder):
    header, data = read_weights(folder)
    write_weights(folder, f"{json.dumps(header)[:-1]}, {json.dumps(A)}: {json.dumps(header[A])}}}", data)


def bytes_after_the_tensors(folder):
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"#!/bin/sh\n")


def weights(**tensors):
    """Replace tensors: `a` and `b` are the first pair."""
    names = {"a": A, "b": B}

    def damage(folder):
        write_peft_folder(folder, tensors=lora_tensors() | {names[key]: value for key, value in tensors.items()})

    return damage


def content(name, text):
    return lambda folder: (folder / name).write_bytes(text)


def config(text):
    """Write these keys, as text, into a configuration that is good otherwise."""

    def damage(folder):
        good = (folder / CONFIG).read_text().rstrip("}")
        (folder / CONFIG).write_text(f"{good}, {text}}}")

    return damage


def sparse(name, num_bytes):
    """Grow a file to a size without writing it."""

    def damage(folder):
        (folder / name).touch()
        os.truncate(folder / name, num_bytes)

    return damage


def link(name, to):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return damage


def golden_prompt(**changes):
    """A fingerprint with one golden prompt, good but for the changes."""
    prompt = {"messages": [], "prompt_token_ids": [1], "answer_token_ids": [2]}
    prompt |= {"adapter_logprobs": [-0.5], "base_logprobs": [-1.0]} | changes
    fingerprint = {"base_digest": "d" * 64, "chat_template_sha256": "", "stop_token_ids": [], "modules": []}
    return content("fingerprint.json", json.dumps(fingerprint | {"prompts": [prompt]}).encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(content(WEIGHTS, b"\0" * 100), "'adapter_model.safetensors' is not a complete", id="zeroes"),
        pytest.param(sparse(WEIGHTS, 700), "'adapter_model.safetensors' is not a complete", id="truncated"),
        pytest.param(content(WEIGHTS, b"\0" * 7 + b"\x7f"), "a header of 9151314442816847872 bytes", id="huge header"),
        pytest.param(same_bytes_twice, "begins at byte", id="tensors that overlap"),
        pytest.param(bytes_after_the_tensors, "the tensors end at byte", id="bytes that no tensor owns"),
        pytest.param(header_with(A, shape=[-RANK, -HIDDEN]), "'-2' as an offset or a dimension", id="negative shape"),
        pytest.param(header_with(A, shape=[2.0, 8.0]), "'2.0' as an offset or a dimension", id="fractional shape"),
        pytest.param(header_with(A, data_offsets=[False, 64]), "'False' as an offset", id="boolean offset"),
        pytest.param(header_with(A, dtype=["F32"]), "is not a complete safetensors file", id="a type that is none"),
        pytest.param(tensor_twice, f"the key '{A}' occurs twice", id="one tensor twice"),
        pytest.param(weights(a=torch.full((RANK, HIDDEN), float("nan"))), f"NaN or infinity: {A}", id="NaN"),
        pytest.param(weights(b=torch.full((HIDDEN, RANK), float("inf"))), f"NaN or infinity: {B}", id="infinity"),
        pytest.param(weights(a=torch.ones(3, HIDDEN)), f"{MODULES[0]} \\(rank 2\\) has A \\(3, 8\\)", id="wrong rank"),
        pytest.param(weights(a=torch.ones(RANK)), f"{MODULES[0]} \\(rank 2\\) has A \\(2,\\)", id="wrong dimensions"),
        pytest.param(content(WEIGHTS, b"\x80\x04"), f"only as '{WEIGHTS}': a pickle", id="renamed pickle"),
        pytest.param(link(WEIGHTS, "/etc/hostname"), f"'{WEIGHTS}' is a symbolic link", id="linked weights"),
        pytest.param(link("README.md", "nowhere"), "link to 'nowhere', which does not exist", id="dangling link"),
        pytest.param(link("README.md", "README.md"), "'README.md' is a symbolic link", id="link in a circle"),
        pytest.param(link(CONFIG, "../../home/x"), "is a symbolic link to '../../home/x'", id="link upwards"),
        pytest.param(link("README.md", "."), "'README.md' is a symbolic link", id="link to a folder"),
        pytest.param(
            sparse(WEIGHTS, (64 << 30) + 1), f"'{WEIGHTS}' has 68719476737 bytes; the limit is", id="huge weights"
        ),
        pytest.param(
            sparse(CONFIG, (1 << 20) + 1), f"'{CONFIG}' has 1048577 bytes; the limit is", id="huge configuration"
        ),
        pytest.param(sparse("README.md", 1 << 30), r"'README\.md' has 1073741824 bytes", id="huge card"),
        pytest.param(sparse("fingerprint.json", 1 << 30), r"'fingerprint\.json' has 1073741824", id="huge fingerprint"),
        pytest.param(config('"r": 512'), "the key 'r' occurs twice", id="one key twice"),
        pytest.param(config('"x": NaN'), "NaN is not a JSON number", id="NaN in the configuration"),
        pytest.param(config('"rank_pattern": {"(a+)+$": 2}'), "must map plain patterns", id="endless pattern"),
        pytest.param(config(f'"rank_pattern": {{"{"(" * 5000}": 2}}'), "must map plain patterns", id="deep pattern"),
        pytest.param(config('"modules_to_save": 5'), "modules_to_save is 5", id="modules that are none"),
        pytest.param(
            content("fingerprint.json", b"\xff\xfe"), "fingerprint.json of 'medical'", id="binary fingerprint"
        ),
        pytest.param(sparse("held_out.json", 1 << 30), r"'held_out\.json' has 1073741824 bytes", id="huge questions"),
        pytest.param(link("held_out.json", "/etc/passwd"), "'held_out.json' is a symbolic link", id="linked questions"),
        pytest.param(
            content("held_out.json", b"\xff"), "held_out.json of 'medical' is not valid JSON", id="binary questions"
        ),
        pytest.param(
            content("held_out.json", b"[" * 100_000),
            "held_out.json of 'medical' is not valid JSON",
            id="deep questions",
        ),
        pytest.param(
            content("held_out.json", b'{"general": NaN}'), "NaN is not a JSON number", id="NaN in the questions"
        ),
        pytest.param(content("held_out.json", b"[]"), "must hold a JSON object", id="questions that are a list"),
        pytest.param(
            content("evaluation.jsonl", b'{}\n{"a": NaN}'), "Line 2 of the evaluation.jsonl", id="NaN in items"
        ),
        pytest.param(content("evaluation.jsonl", b"[]\n"), "Line 1 of the evaluation.jsonl", id="items that are lists"),
        pytest.param(content("evaluation.jsonl", b"\xff"), "Line 1 of the evaluation.jsonl", id="binary items"),
        pytest.param(sparse("evaluation.jsonl", 1 << 30), r"'evaluation\.jsonl' has 1073741824", id="huge items"),
        pytest.param(
            link("evaluation.jsonl", "/etc/passwd"), "'evaluation.jsonl' is a symbolic link", id="linked items"
        ),
        pytest.param(golden_prompt(base_logprobs=[]), r"has \(1, 1, 0\) token ids", id="uneven fingerprint"),
        pytest.param(golden_prompt(prompt_token_ids=[-1]), "prompt_token_ids.0", id="negative token"),
        pytest.param(golden_prompt(adapter_logprobs=[1e999]), "adapter_logprobs.0", id="infinite fingerprint"),
    ],
)
def test_a_hostile_folder_is_not_published(store, peft_folder, damage, message):
    draft = draft_for(peft_folder, evaluation=EVALUATION)
    damage(peft_folder)
    with pytest.raises(InvalidAdapterError, match=message):
        store.publish(peft_folder, draft)
    assert not store.root.exists()


@pytest.mark.parametrize("alpha", ["1e999", "-1e999", "1e300", "1" + "0" * 400])
def test_a_scale_without_bounds_is_not_published(store, peft_folder, alpha):
    draft = draft_for(peft_folder)
    text = (peft_folder / CONFIG).read_text()
    (peft_folder / CONFIG).write_text(text.replace('"lora_alpha": 4', f'"lora_alpha": {alpha}'))
    with pytest.raises(InvalidAdapterError, match=r"lora_alpha is .* must be a number"):
        store.publish(peft_folder, draft)
    assert not store.root.exists()


def test_a_linked_folder_is_not_published(store, peft_folder, tmp_path):
    (tmp_path / "latest").symlink_to(peft_folder)
    with pytest.raises(InvalidAdapterError, match="'latest' is a symbolic link"):
        store.publish(tmp_path / "latest", draft_for(peft_folder))
    assert not store.root.exists()


def test_an_adapter_of_another_base_is_not_published(store, peft_folder, base_folder):
    with pytest.raises(BaseModelMismatchError, match="digest dddddddddddd, but the base 'tiny' has"):
        store.publish(peft_folder, draft_for(peft_folder), base_folder=base_folder)
    assert not store.root.exists()


def test_an_adapter_that_claims_a_base_without_its_layers_is_not_published(store, peft_folder, tmp_path):
    base_folder = write_base_folder(tmp_path / "gpt", modules=("transformer.h.0.attn.c_attn",))
    draft = draft_for(peft_folder, base=read_base(base_folder).ref)
    with pytest.raises(InvalidAdapterError, match="0/4 modules apply to 'gpt'"):
        store.publish(peft_folder, draft, base_folder=base_folder)
    assert not store.root.exists()


def test_a_tensor_name_cannot_write_to_the_terminal(tmp_path):
    tensors = lora_tensors() | {"\x1b[2Jgone" + "x" * 1000: torch.ones(2)}
    (finding,) = lint_folder(write_peft_folder(tmp_path / "x", tensors=tensors), base_folder=None, max_lora_rank=16)
    assert r"\x1b[2Jgone" in finding.message
    assert len(finding.message) < 500


@pytest.fixture
def folder(store, peft_folder):
    """The folder of a published version, whose files may be written to."""
    store.publish(peft_folder, draft_for(peft_folder))
    folder = store.folder(TARGET)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def manifest_with(change):
    """Change the list of files and forge the digest, so that the manifest agrees with itself."""

    def damage(folder):
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        files = tuple(change(list(manifest.files)))
        forged = manifest.model_copy(update={"files": files, "digest": digest_of(files)})
        (folder / "manifest.json").write_text(forged.model_dump_json())

    return damage


def listing(path, size_bytes=0):
    """Also list a file."""
    return manifest_with(lambda files: [*files, FileEntry(path=path, size_bytes=size_bytes, sha256="0" * 64)])


def move_away_and_link(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def link_manifest(folder):
    (folder / "manifest.json").rename(folder.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent / "manifest.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(
            listing("../../../secret"), r"lists '\.\./\.\./\.\./secret'; a version may hold only", id="upwards"
        ),
        pytest.param(listing("/etc/passwd"), "lists '/etc/passwd'", id="absolute"),
        pytest.param(listing("x/../README.md"), "lists 'x/../README.md'", id="through a folder"),
        pytest.param(listing("adapter_model.bin"), "lists 'adapter_model.bin'", id="pickle"),
        pytest.param(listing("manifest.json"), "lists 'manifest.json'", id="itself"),
        pytest.param(listing(""), "lists ''", id="nothing"),
        pytest.param(listing("README.md\0"), r"lists 'README\.md\\x00'", id="null byte"),
        pytest.param(manifest_with(lambda files: [*files, files[0]]), "twice", id="one file twice"),
        pytest.param(listing("fingerprint.json", -1), "says -1 bytes of 'fingerprint.json'", id="negative size"),
        pytest.param(listing("fingerprint.json", 1 << 40), "says 1099511627776 bytes", id="huge size"),
        pytest.param(manifest_with(lambda files: files[1:]), "which its manifest does not list", id="a file left out"),
        pytest.param(sparse("manifest.json", (16 << 20) + 1), "manifest.json of medical@1 has 16777217", id="huge"),
        pytest.param(content("manifest.json", b"\xff"), "manifest.json of medical@1 is broken", id="binary manifest"),
        pytest.param(link_manifest, "'manifest.json' is a symbolic link", id="linked manifest"),
        pytest.param(move_away_and_link, "'1' is a symbolic link", id="linked folder"),
        pytest.param(link(WEIGHTS, "/etc/hostname"), f"lacks its file '{WEIGHTS}'", id="linked weights"),
        pytest.param(sparse(WEIGHTS, 700), f"'{WEIGHTS}' has 700 bytes", id="truncated weights"),
        pytest.param(content("evil.pt", b""), "holds 'evil.pt'", id="a file more"),
    ],
)
def test_a_hostile_version_does_not_verify(store, folder, damage, message):
    damage(folder)
    with pytest.raises(IntegrityError, match=message):
        store.verify(TARGET)


def test_a_removed_link_leaves_what_it_pointed_to(store, folder):
    move_away_and_link(folder)
    store.remove(TARGET)
    assert not folder.is_symlink()
    assert (folder.with_name("elsewhere") / WEIGHTS).exists()


def test_weights_forged_with_their_hashes_still_meet_the_lint_before_they_are_loaded(store, folder):
    weights(a=torch.full((RANK, HIDDEN), float("nan")))(folder)
    manifest_with(lambda files: [file_entry(folder, entry.path) for entry in files])(folder)
    store.verify(TARGET)
    (finding,) = lint_folder(folder, base_folder=None, max_lora_rank=16)
    assert finding.code == "not-finite"
