"""Many adapters without training many: a temporary state folder with copies of one adapter under other names."""

from pathlib import Path

from adapters.manifest import Manifest, ManifestDraft
from adapters.store import AdapterStore
from config.home import Home

NAME_PREFIX = "cliff"


def copy_adapter(home: Home, reference: str, count: int, folder: Path) -> tuple[Home, tuple[str, ...]]:
    """Publish `count` copies as `cliff-000`, `cliff-001`… in a state folder of their own; the user's is only read.

    Args:
        folder: Becomes the new state folder; its base is a link to the user's.

    Returns:
        The new state folder, and the names of the copies.

    Raises:
        AdapterError: There is no such adapter, or it cannot be published again.
    """
    store = AdapterStore(home.adapters)
    target = store.resolve(reference)
    manifest, source = store.manifest(target), store.folder(target)
    copies = Home(folder)
    _link_base(home, copies, manifest.base.name)
    store_of_copies = AdapterStore(copies.adapters)
    names = tuple(f"{NAME_PREFIX}-{number:03d}" for number in range(count))
    for name in names:
        version = store_of_copies.publish(source, _draft(manifest, name)).version
        store_of_copies.promote(name, version, reason="copy for a load test")
    return copies, names


def _link_base(home: Home, copies: Home, base: str) -> None:
    copies.bases.mkdir(parents=True)
    (copies.bases / base).symlink_to((home.bases / base).resolve(), target_is_directory=True)


def _draft(manifest: Manifest, name: str) -> ManifestDraft:
    fields = {field: getattr(manifest, field) for field in ManifestDraft.model_fields}
    return ManifestDraft(**fields | {"name": name, "description": f"A copy of {manifest.lora_name} for a load test."})
