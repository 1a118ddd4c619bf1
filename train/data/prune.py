"""Versions of data sets that nothing needs: neither current, nor what a published adapter was trained on."""

import shutil
from pathlib import Path

from adapters.reference import Target
from adapters.store.durable import file_lock
from adapters.store.store import AdapterStore
from config.dataset import DatasetManifest, read_dataset, version_folder
from train.data.versions import LOCK_FILE, domains_of, versions_of


def unneeded_versions(datasets: Path, store: AdapterStore) -> list[DatasetManifest]:
    """Complete versions that are not their domain's current one, and that no published version names by its digest.

    Raises:
        AdapterError: A manifest of the store cannot be read, so it is unknown what it names.
        DatasetError: A data set's manifest or pointer is damaged.
    """
    named = _named_by(store)
    found: list[DatasetManifest] = []
    for domain in domains_of(datasets):
        current = version_folder(datasets / domain)
        others = [read_dataset(folder) for folder in versions_of(datasets / domain) if folder != current]
        found += [each for each in others if each.digest not in named]
    return found


def remove_version(datasets: Path, unneeded: DatasetManifest) -> bool:
    """Delete a version; False if it has become the current one meanwhile."""
    folder = datasets / unneeded.domain
    with file_lock(folder / LOCK_FILE):
        target = folder / unneeded.version
        if version_folder(folder) == target:
            return False
        staged = folder / f".staging-removed-{unneeded.version}"  # the next build deletes what an interruption leaves
        target.rename(staged)
        shutil.rmtree(staged)
    return True


def _named_by(store: AdapterStore) -> set[str]:
    """Digests of the data sets of all published versions."""
    targets = [Target(name, version) for name in store.names() for version in store.versions(name)]
    references = [store.manifest(target).dataset for target in targets]
    return {each.digest for each in references if each is not None and each.digest is not None}
