"""Canaries for the quality demo: one copy of the stable version that is worse, and one that is equally good."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapters.fingerprint import FINGERPRINT_FILE
from adapters.lint.peft_folder import WEIGHTS_FILE
from adapters.reference import Target
from adapters.store.manifest import ManifestDraft, QualityRules
from adapters.store.store import AdapterStore
from adapters.store.version_files import MAX_BYTES
from config.dataset import read_dataset, read_split
from config.home import Home
from quality.held_out import HeldOutMessage, HeldOutQuestion, HeldOutSet, read_held_out, write_held_out

BAD_NOISE, GOOD_NOISE = 4.0, 1e-3
"""Standard deviation of what is added to each tensor, in units of the tensor's own. LoRA forgives much: noise twice as
strong as the weights themselves left the medical adapter's held-out accuracy as it was."""
RULES = QualityRules(max_slow_increase=0.1)
"""The defaults, but for twice as much slowness: both versions share a machine with their own clients."""
_SEED = 7


@dataclass(frozen=True)
class Canaries:
    """Three versions of one adapter in a separate store."""

    store: AdapterStore
    stable: Target
    bad: Target
    good: Target


def make_canaries(home: Home, scratch: Home, name: str) -> Canaries:
    """Copy the stable version of an adapter, and two disturbed ones, into a fresh home that borrows the bases.

    Raises:
        AdapterNotFoundError: The adapter has no stable version.
        DatasetError: The version has no held-out questions, and its domain's data set is missing.
    """
    source = AdapterStore(home.adapters)
    target = source.resolve(name)
    shutil.rmtree(scratch.root, ignore_errors=True)
    scratch.root.mkdir(parents=True)
    scratch.bases.symlink_to(home.bases.resolve(), target_is_directory=True)
    held_out = read_held_out(source.folder(target)) or held_out_of(home.datasets / name)
    fields = source.manifest(target).model_dump(include=set(ManifestDraft.model_fields))
    draft = ManifestDraft.model_validate(fields | {"quality": RULES})
    store = AdapterStore(scratch.adapters)
    versions = [
        _publish_copy(store, source.folder(target), draft, held_out, noise, is_known)
        for noise, is_known in ((0.0, True), (BAD_NOISE, False), (GOOD_NOISE, True))
    ]
    store.promote(name, versions[0].version, reason=f"a copy of {target}")
    return Canaries(store, *versions)


def held_out_of(dataset_folder: Path) -> HeldOutSet:
    """The held-out split of a built data set as questions, for a version that was published without its own.

    Raises:
        DatasetError: No such data set.
    """
    evaluation = read_dataset(dataset_folder).evaluation
    questions = tuple(
        HeldOutQuestion(
            messages=tuple(HeldOutMessage(role=turn.role, content=turn.content) for turn in row.prompt),
            expected=row.output,
        )
        for row in read_split(dataset_folder, "test")
    )
    return HeldOutSet(max_tokens=evaluation.max_new_tokens, stop=evaluation.stop, questions=questions)


def _publish_copy(
    store: AdapterStore, source: Path, draft: ManifestDraft, held_out: HeldOutSet, noise: float, is_known: bool
) -> Target:
    """Args:
    is_known: Whether it keeps its fingerprint. With one, the server would refuse a version that does not answer as
        it was trained to before its first answer; without, only its answers tell.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        folder.mkdir()
        for file in MAX_BYTES:
            if (source / file).is_file():
                shutil.copyfile(source / file, folder / file)
        write_held_out(held_out, folder)
        if noise:
            add_noise(folder / WEIGHTS_FILE, noise)
        if not is_known:
            (folder / FINGERPRINT_FILE).unlink(missing_ok=True)
        manifest = store.publish(folder, draft)
    return Target(manifest.name, manifest.version)


def add_noise(weights: Path, noise: float) -> None:
    """Add seeded normal noise to every tensor of a file, in units of the tensor's own standard deviation."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(_SEED)
    tensors = {
        name: tensor + noise * tensor.float().std() * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in load_file(weights).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights)
