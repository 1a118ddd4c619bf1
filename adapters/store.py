"""The adapter store: immutable versions under `<root>/<name>/<version>/`, published whole or not at all."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from adapters.aliases import current_aliases, rollback_version
from adapters.durable import copy_file, file_lock, rename_folder, sync_folder, write_file
from adapters.errors import AdapterInUseError, AdapterNotFoundError, IntegrityError, InvalidReferenceError
from adapters.history import Event, EventKind, append_event, read_history
from adapters.integrity import digest_of, file_entry, verify_folder
from adapters.manifest import MANIFEST_FILE, FileEntry, Manifest, ManifestDraft
from adapters.publishable import VERSION_FILES, check_publishable
from adapters.reference import DEFAULT_ALIAS, Target, is_adapter_name, parse_reference

logger = logging.getLogger(__name__)

_LOCK_FILE = ".lock"


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Collected:
    """What `gc` removed."""

    num_staged: int
    removed: tuple[Target, ...]


class AdapterStore:
    """Versions, aliases and history of all adapters; safe for several processes at once."""

    def __init__(self, root: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.root = root
        self._staging = root / ".staging"
        self._clock = clock

    def names(self) -> list[str]:
        """Adapters that have a version, sorted."""
        folders = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
        return sorted(name for name in folders if is_adapter_name(name) and self.versions(name))

    def versions(self, name: str) -> list[int]:
        """Published versions of an adapter, oldest first; empty when there is none."""
        folder = self._adapter_folder(name)
        paths = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
        return sorted(int(path.name) for path in paths if (path / MANIFEST_FILE).is_file())

    def folder(self, target: Target) -> Path:
        """The immutable folder of a version.

        Raises:
            AdapterNotFoundError: No such version.
        """
        folder = self._adapter_folder(target.name) / str(target.version)
        if not (folder / MANIFEST_FILE).is_file():
            raise AdapterNotFoundError(f"There is no {str(target)!r}. {self._existing(target.name)}")
        return folder

    def manifest(self, target: Target) -> Manifest:
        """The manifest of a version.

        Raises:
            AdapterNotFoundError: No such version.
            IntegrityError: Its manifest cannot be read, or belongs to another version.
        """
        text = (self.folder(target) / MANIFEST_FILE).read_text(encoding="utf-8", errors="replace")
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise IntegrityError(f"{MANIFEST_FILE} of {target} is broken. Publish the adapter again.") from error
        if manifest.lora_name != str(target):
            raise IntegrityError(f"The folder of {target} holds the manifest of {manifest.lora_name}.")
        return manifest

    def resolve(self, reference_text: str) -> Target:
        """The version that a model reference means now.

        Raises:
            InvalidReferenceError: Not of the form `name`, `name@version` or `name@alias`.
            AdapterNotFoundError: No such adapter, version or alias.
        """
        reference = parse_reference(reference_text)
        version = reference.version
        if reference.alias is not None:
            version = self.aliases(reference.name).get(reference.alias)
        if version is None:
            raise AdapterNotFoundError(f"There is no {reference_text!r}. {self._existing(reference.name)}")
        target = Target(reference.name, version)
        self.folder(target)
        return target

    def aliases(self, name: str) -> dict[str, int]:
        """Version that each alias of an adapter points to."""
        return current_aliases(self.history(name))

    def history(self, name: str) -> tuple[Event, ...]:
        """All that happened to an adapter, oldest first."""
        return read_history(self._adapter_folder(name))

    def verify(self, target: Target) -> Manifest:
        """Hash every file of a version again.

        Raises:
            AdapterNotFoundError: No such version.
            IntegrityError: A file is missing, unknown or changed.
        """
        manifest = self.manifest(target)
        verify_folder(self.folder(target), manifest)
        return manifest

    def publish(self, source: Path, draft: ManifestDraft, *, base_folder: Path | None = None) -> Manifest:
        """Copy a PEFT folder into the store as the next version of `draft.name`, or leave no trace.

        Args:
            base_folder: The prepared base, to prove that the adapter's modules apply to it.

        Raises:
            InvalidReferenceError: `draft.name` is no adapter name.
            InvalidAdapterError: The folder is broken, or contradicts the draft.
            UnsupportedAdapterError: vLLM cannot serve it.
            BaseModelMismatchError: Its fingerprint or `base_folder` belongs to another base.
        """
        self._adapter_folder(draft.name)
        check_publishable(source, draft, base_folder)
        with self._staged() as staged:
            for name in VERSION_FILES:
                if (source / name).is_file():
                    copy_file(source / name, staged / name)
            files = tuple(file_entry(staged, path.name) for path in sorted(staged.iterdir()))
            with self._locked(draft.name) as folder:
                return self._commit(folder, staged, draft, files)

    def promote(self, name: str, version: int, alias: str = DEFAULT_ALIAS, reason: str = "") -> None:
        """Point an alias to a version; does nothing when it is there already.

        Raises:
            InvalidReferenceError: No adapter or alias name.
            AdapterNotFoundError: No such version.
        """
        parse_reference(f"{name}@{alias}")
        target = Target(name, version)
        self.folder(target)
        with self._locked(name) as folder:
            self.folder(target)  # it may have been removed while we waited
            previous = self.aliases(name).get(alias)
            if previous != version:
                self._record(folder, "promoted", version, alias, previous, reason)

    def rollback(self, name: str, alias: str = DEFAULT_ALIAS, reason: str = "") -> Target:
        """Point an alias back to the version that it had before its last promotion.

        Raises:
            InvalidReferenceError: No adapter or alias name.
            AdapterNotFoundError: The alias has no earlier version that still exists.
        """
        self.resolve(f"{name}@{alias}")
        with self._locked(name) as folder:
            history = self.history(name)
            version = rollback_version(history, alias)
            previous = current_aliases(history).get(alias)
            if version is None:
                raise AdapterNotFoundError(
                    f"'{name}@{alias}' points to version {previous} and has no earlier one to go back to. "
                    f"Promote a version instead; {name!r} has {self.versions(name)}."
                )
            self._record(folder, "rolled_back", version, alias, previous, reason)
        return Target(name, version)

    def remove(self, target: Target, reason: str = "") -> None:
        """Delete a version; its number is never used again.

        Raises:
            AdapterNotFoundError: No such version.
            AdapterInUseError: An alias points to it.
        """
        self.folder(target)
        with self._staged() as trash, self._locked(target.name) as folder:
            version_folder = self.folder(target)
            if aliases := self._aliases_of(target):
                raise AdapterInUseError(
                    f"{str(target)!r} is {' and '.join(aliases)}. Promote another version first: "
                    f"{target.name!r} has {self.versions(target.name)}."
                )
            # Recorded first: were it lost after the rename, the number could be given out again.
            self._record(folder, "removed", target.version, reason=reason)
            version_folder.rename(trash / version_folder.name)
            sync_folder(folder)

    def gc(self, *, keep_last: int | None = None) -> Collected:
        """Remove what crashed publishers left, and old versions that no alias points to.

        Args:
            keep_last: How many of the newest versions of each adapter stay; None keeps all.

        Raises:
            ValueError: `keep_last` is negative.
        """
        if keep_last is not None and keep_last < 0:
            raise ValueError(f"keep_last must be 0 or more; got {keep_last}.")
        removed = [] if keep_last is None else [t for n in self.names() for t in self._unused(n, keep_last)]
        for target in removed:
            self.remove(target, reason=f"gc, keep_last {keep_last}")
        return Collected(self._clear_staging(), tuple(removed))

    def _commit(self, folder: Path, staged: Path, draft: ManifestDraft, files: tuple[FileEntry, ...]) -> Manifest:
        manifest = Manifest(
            **dict(draft),
            version=self._next_version(draft.name),
            digest=digest_of(files),
            files=files,
            created_at=self._now(),
        )
        # Written last: its presence marks the folder complete.
        write_file(staged / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
        rename_folder(staged, folder / str(manifest.version))
        self._record(folder, "published", manifest.version)
        return manifest

    def _next_version(self, name: str) -> int:
        recorded = [event.version for event in self.history(name)]
        return max([0, *recorded, *self.versions(name)]) + 1

    def _unused(self, name: str, keep_last: int) -> list[Target]:
        versions = self.versions(name)
        kept = {*versions[len(versions) - min(keep_last, len(versions)) :], *self.aliases(name).values()}
        return [Target(name, version) for version in versions if version not in kept]

    def _aliases_of(self, target: Target) -> list[str]:
        return sorted(a for a, version in self.aliases(target.name).items() if version == target.version)

    def _record(
        self,
        folder: Path,
        kind: EventKind,
        version: int,
        alias: str | None = None,
        previous: int | None = None,
        reason: str = "",
    ) -> None:
        event = Event(kind=kind, at=self._now(), version=version, alias=alias, previous=previous, reason=reason)
        append_event(folder, event)
        logger.info("%s@%d %s alias=%s previous=%s reason=%s", folder.name, version, kind, alias, previous, reason)

    def _now(self) -> str:
        return self._clock().isoformat(timespec="seconds")

    def _adapter_folder(self, name: str) -> Path:
        if not is_adapter_name(name):
            raise InvalidReferenceError(
                f"{name[:80]!r} is no adapter name. Use up to 63 lower-case letters, digits and dashes."
            )
        return self.root / name

    def _existing(self, name: str) -> str:
        """What there is instead, for an error message."""
        if versions := self.versions(name):
            aliases = ", ".join(f"{alias} = {version}" for alias, version in sorted(self.aliases(name).items()))
            return f"{name!r} has the versions {versions}" + (f" and the aliases {aliases}." if aliases else ".")
        return f"The store has {self.names()}." if self.names() else "The store is empty; train or import one."

    @contextmanager
    def _locked(self, name: str) -> Iterator[Path]:
        """Hold an adapter's lock; gives its folder."""
        folder = self._adapter_folder(name)
        is_new = not folder.exists()
        with file_lock(folder / _LOCK_FILE):
            if is_new:
                sync_folder(self.root)
            yield folder

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """An empty folder on the store's own disk, gone afterwards unless it was renamed into place."""
        staged = self._staging / uuid4().hex
        # Shared: `gc` waits for everybody who stages.
        with file_lock(self._staging / _LOCK_FILE, shared=True):
            staged.mkdir()
            try:
                yield staged
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    def _clear_staging(self) -> int:
        if not self._staging.is_dir():
            return 0
        with file_lock(self._staging / _LOCK_FILE):
            leftovers = [path for path in self._staging.iterdir() if path.is_dir()]
            for path in leftovers:
                shutil.rmtree(path)
        return len(leftovers)
