"""Read access to the adapter store: versions, references, manifests, history."""

import logging
from pathlib import Path

from adapters.errors import AdapterNotFoundError, IntegrityError
from adapters.reference import Target, parse_reference
from adapters.release.traffic import Split
from adapters.release.trials import Trial, current_trial
from adapters.store.folders import StoreFolders, is_complete, version_folders
from adapters.store.history import Event, read_history
from adapters.store.integrity import read_manifest, verify_folder
from adapters.store.manifest import Manifest
from adapters.store.quarantine import Quarantined, read_quarantine
from adapters.store.state import AdapterState, read_state

logger = logging.getLogger(__name__)


class StoreReader:
    """Read-only part of `AdapterStore`; takes no lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = StoreFolders(root)

    def names(self) -> list[str]:
        """Adapters with at least one version, sorted; one with a broken history is skipped with a warning."""
        return [name for name in self.folders.names() if self._has_versions(name)]

    def versions(self, name: str) -> list[int]:
        """Published versions of an adapter, oldest first."""
        found = version_folders(self.folders.adapter(name))
        removed = self.state(name).removed
        return sorted(version for version, path in found.items() if version not in removed and is_complete(path))

    def has_version(self, target: Target) -> bool:
        """Whether the version's folder is present, complete and not removed."""
        folder = self.folders.adapter(target.name)
        return target.version not in self.state(target.name).removed and is_complete(folder / str(target.version))

    def folder(self, target: Target) -> Path:
        """The immutable folder of a version.

        Raises:
            AdapterNotFoundError: No such version.
        """
        if not self.has_version(target):
            raise AdapterNotFoundError(f"There is no {str(target)!r}. {self.existing(target.name)}")
        return self.root / target.name / str(target.version)

    def manifest(self, target: Target) -> Manifest:
        """The manifest of a version.

        Raises:
            AdapterNotFoundError: No such version.
            IntegrityError: Its manifest cannot be read, or belongs to another version.
        """
        return read_manifest(self.folder(target), target)

    def resolve(self, reference_text: str) -> Target:
        """The version that a model reference currently resolves to.

        Raises:
            InvalidReferenceError: Not of the form `name`, `name@version` or `name@alias`.
            AdapterNotFoundError: No such adapter, version or alias.
        """
        target = self.recorded(reference_text)
        self.folder(target)
        return target

    def recorded(self, reference_text: str) -> Target:
        """Resolve a model reference by the history, whether or not the version's folder is present.

        Raises:
            InvalidReferenceError: Not of the form `name`, `name@version` or `name@alias`.
            AdapterNotFoundError: No such alias.
        """
        reference = parse_reference(reference_text)
        version = reference.version
        if reference.alias is not None:
            version = self.state(reference.name).aliases.get(reference.alias)
        if version is None:
            raise AdapterNotFoundError(f"There is no {reference_text!r}. {self.existing(reference.name)}")
        return Target(reference.name, version)

    def state(self, name: str) -> AdapterState:
        """A consistent snapshot of aliases, split and pins."""
        return read_state(self.folders.adapter(name))

    def aliases(self, name: str) -> dict[str, int]:
        """The version of each alias of an adapter."""
        return dict(self.state(name).aliases)

    def split(self, name: str) -> Split:
        """How requests for the bare name are split between `stable` and `canary`."""
        return self.state(name).split

    def pins(self, name: str) -> frozenset[int]:
        """Versions of an adapter that stay resident."""
        return self.state(name).pins

    def quarantined(self, name: str) -> dict[int, Quarantined]:
        """Versions of an adapter that are out of service.

        Raises:
            IntegrityError: The quarantine file is broken.
        """
        return read_quarantine(self.folders.adapter(name))

    def history(self, name: str) -> tuple[Event, ...]:
        """All events of an adapter, oldest first.

        Raises:
            IntegrityError: A line before the last is not a valid event.
        """
        return read_history(self.folders.adapter(name))

    def trial(self, name: str) -> Trial | None:
        """The canary's trial against stable; None without a canary, or if both are the same version."""
        return current_trial(self.history(name))

    def existing(self, name: str) -> str:
        """Sentence for error messages that lists what exists."""
        if versions := self.versions(name):
            aliases = ", ".join(f"{alias} = {version}" for alias, version in sorted(self.aliases(name).items()))
            return f"{name!r} has the versions {versions}" + (f" and the aliases {aliases}." if aliases else ".")
        return f"The store has {self.names()}." if self.names() else "The store is empty; train or import one."

    def verify(self, target: Target) -> Manifest:
        """Verify every file of a version against its manifest.

        Raises:
            AdapterNotFoundError: No such version.
            IntegrityError: A file is missing, unknown, a link or changed.
        """
        manifest = self.manifest(target)
        verify_folder(self.folder(target), manifest)
        return manifest

    def _has_versions(self, name: str) -> bool:
        try:
            return bool(self.versions(name))
        except IntegrityError as error:
            logger.warning("skipping %s: %s", name, error)
            return False
