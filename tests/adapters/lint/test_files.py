"""What lies beside an adapter: trainers' files are left there, and links are followed where they stay at home."""

import os
from pathlib import Path

import pytest

from adapters.errors import InvalidAdapterError
from adapters.lint.lint import lint_folder
from adapters.reference import Target
from adapters.store.store import AdapterStore
from tests.peft_folders import draft_for, write_peft_folder

WEIGHTS = "adapter_model.safetensors"


def said(folder: Path, level: str) -> list[str]:
    findings = lint_folder(folder, base_folder=None, max_lora_rank=16)
    return [finding.message for finding in findings if finding.level == level]


LEFT = [
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "training_args.bin",
    "trainer_state.json",
    "rng_state.pth",
    "random_states_0.pkl",
    "custom_checkpoint_0.pkl",
    "pytorch_model.bin",
    "adapter_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "zero_to_fp32.py",
    "latest",
    "weights.ckpt",
    "events.out.tfevents.1.host.2.0",
]


@pytest.mark.parametrize("name", LEFT)
def test_what_a_trainer_leaves_is_a_warning_and_not_copied(store: AdapterStore, peft_folder: Path, name: str) -> None:
    (peft_folder / name).write_bytes(b"not read by anyone")
    (peft_folder / name).chmod(0)
    (warning,) = said(peft_folder, "warning")
    assert repr(name) in warning
    assert "not copied" in warning
    store.publish(peft_folder, draft_for(peft_folder))
    copied = {path.name for path in store.folder(Target("medical", 1)).iterdir()}
    assert copied == {"adapter_config.json", WEIGHTS, "README.md", "manifest.json"}


@pytest.mark.parametrize("name", ["global_step60", "pytorch_model_fsdp_0", "optimizer_0", "runs", "checkpoint-20"])
def test_so_is_a_folder_that_it_leaves(store: AdapterStore, peft_folder: Path, name: str) -> None:
    (peft_folder / name).mkdir()
    (peft_folder / name / "__0_0.distcp").write_bytes(b"")
    (warning,) = said(peft_folder, "warning")
    assert repr(name) in warning
    store.publish(peft_folder, draft_for(peft_folder))


def test_files_of_many_processes_are_one_warning(peft_folder: Path) -> None:
    for process in range(12):
        (peft_folder / f"rng_state_{process}.pth").write_bytes(b"")
    assert said(peft_folder, "warning") == [
        "'rng_state_0.pth' … 'rng_state_11.pth' (12 files) belong to a trainer and are not copied."
    ]


def test_a_thousand_names_are_a_few_warnings(peft_folder: Path) -> None:
    for number in range(100):
        (peft_folder / f"{'x' * number}.pt").write_bytes(b"")
    assert len(said(peft_folder, "warning")) == 12


def test_a_tokenizer_beside_is_not_used(peft_folder: Path) -> None:
    (peft_folder / "tokenizer.json").write_text("{}")
    assert said(peft_folder, "warning") == [
        "The folder's own tokenizer and chat template are not used; the base's are."
    ]


def cached(root: Path, folder: Path) -> Path:
    """A snapshot as a hub's cache holds it: links to blobs that are named by their hash."""
    snapshot = root / "models--ada--medical" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = snapshot.parent.parent / "blobs" / f"{number:040}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_a_snapshot_of_a_hub_cache_is_published_as_files(
    store: AdapterStore, peft_folder: Path, tmp_path: Path
) -> None:
    weights = (peft_folder / WEIGHTS).read_bytes()
    snapshot = cached(tmp_path, peft_folder)
    assert said(snapshot, "error") == []
    store.publish(snapshot, draft_for(snapshot))
    published = store.folder(Target("medical", 1)) / WEIGHTS
    assert not published.is_symlink()
    assert published.read_bytes() == weights
    store.verify(Target("medical", 1))


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../models--eve--other/blobs/1", "../../refs/main"])
def test_a_link_out_of_its_repository_is_refused_by_its_target(
    store: AdapterStore, peft_folder: Path, tmp_path: Path, target: str
) -> None:
    snapshot = cached(tmp_path, peft_folder)
    for path in ("models--eve--other/blobs/1", "models--ada--medical/refs/main"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("# Not the card\n")
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to(target)
    (message,) = said(snapshot, "error")
    assert message == f"'README.md' is a symbolic link to {target!r}."
    with pytest.raises(InvalidAdapterError, match="is a symbolic link to"):
        store.publish(snapshot, draft_for(snapshot))


def test_blobs_that_are_a_link_lead_elsewhere(peft_folder: Path, tmp_path: Path) -> None:
    snapshot = cached(tmp_path, peft_folder)
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert len(said(snapshot, "error")) == 3


def test_any_other_link_is_refused(peft_folder: Path) -> None:
    (peft_folder / "README.md").rename(peft_folder / "card.md")
    (peft_folder / "README.md").symlink_to("card.md")
    assert said(peft_folder, "error") == ["'README.md' is a symbolic link to 'card.md'."]


def test_a_link_to_what_is_not_copied_is_left_alone(peft_folder: Path) -> None:
    (peft_folder / "latest-run").symlink_to("/etc")
    assert said(peft_folder, "error") == []


def test_a_linked_folder_names_its_target(tmp_path: Path) -> None:
    folder = write_peft_folder(tmp_path / "checkpoint-60")
    (tmp_path / "latest").symlink_to(folder.name)
    assert said(tmp_path / "latest", "error") == ["'latest' is a symbolic link to 'checkpoint-60'."]
