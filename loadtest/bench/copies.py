"""Many adapters for load tests: a temporary state folder with copies of one adapter under other names."""

import os
from collections.abc import Sequence
from pathlib import Path

from adapters.lint.peft_folder import read_lora_spec
from adapters.reference import Target
from adapters.store.durable import write_file
from adapters.store.history import append_events
from adapters.store.manifest import MANIFEST_FILE, Manifest, ManifestDraft
from adapters.store.store import AdapterStore
from config.home import Home

NAME_PREFIX = "cliff"


def copy_adapter(
    home: Home, reference: str, count: int, folder: Path, *, lora_r: int | None = None
) -> tuple[Home, tuple[str, ...]]:
    """Publish `count` copies as `cliff-000`, `cliff-001`… in a state folder of their own; the user's is only read.

    All copies but the first are hard links: a thousand take seconds, and the room of one.

    Args:
        folder: Becomes the new state folder; its base is a link to the user's.
        lora_r: Rank of the copies, the adapter's own or higher: the same function, padded with zeros.

    Returns:
        The new state folder, and the names of the copies.

    Raises:
        AdapterError: There is no such adapter, or it cannot be published again.
        LoadtestError: It cannot be padded to this rank.
    """
    store = AdapterStore(home.adapters)
    target = store.resolve(reference)
    manifest, source = store.manifest(target), store.folder(target)
    copies = Home(folder)
    _link_base(home, copies, manifest.base.name)
    if lora_r is not None:
        source = _padded(source, lora_r, folder / f"rank-{lora_r}")
    names = tuple(f"{NAME_PREFIX}-{number:03d}" for number in range(count))
    _publish(AdapterStore(copies.adapters), source, manifest, names)
    return copies, names


def _publish(store: AdapterStore, source: Path, manifest: Manifest, names: Sequence[str]) -> None:
    draft = ManifestDraft(**{field: getattr(manifest, field) for field in ManifestDraft.model_fields})
    changes = {
        "name": names[0],
        "description": f"A copy of {manifest.lora_name} for a load test.",
        "lora": read_lora_spec(source),
        "defaults": None,  # a system prompt of the version's own would be more work than the baseline has
    }
    first = store.publish(source, draft.model_copy(update=changes))
    store.promote(first.name, first.version, reason="copy for a load test")
    for name in names[1:]:
        _link(store, first, name)


def _link(store: AdapterStore, first: Manifest, name: str) -> None:
    """Another name for a published version: the same files and history, and a manifest of its own."""
    folder = store.folder(Target(first.name, first.version))
    with store.folders.locked(name) as place:
        append_events(place, store.history(first.name))
    with store.folders.staged() as staged:
        for entry in first.files:
            os.link(folder / entry.path, staged / entry.path)
        manifest = first.model_copy(update={"name": name})
        write_file(staged / MANIFEST_FILE, f"{manifest.model_dump_json(indent=2)}\n".encode())
        store.adopt(staged, Target(name, first.version))


def _link_base(home: Home, copies: Home, base: str) -> None:
    copies.bases.mkdir(parents=True)
    (copies.bases / base).symlink_to((home.bases / base).resolve(), target_is_directory=True)


def _padded(source: Path, lora_r: int, folder: Path) -> Path:
    from loadtest.load.padding import pad_rank  # torch takes seconds, and few want another rank

    pad_rank(source, lora_r, folder)
    return folder
