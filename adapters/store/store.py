"""The adapter store: immutable versions under `<root>/<name>/<version>/`, published atomically."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adapters.dora import add_dora
from adapters.errors import AdapterInUseError, AdapterNotFoundError
from adapters.lint.files import real_file
from adapters.lint.publishable import check_publishable
from adapters.reference import DEFAULT_ALIAS, Target, parse_alias
from adapters.release.aliases import current_aliases, plan_moves, plan_removal, rollback_version
from adapters.release.traffic import plan_split
from adapters.release.trials import Conclusion, Trial, check_running, plan_conclusion
from adapters.store.durable import copy_file, rename_folder, write_file
from adapters.store.folders import discard_version, is_complete, version_folders
from adapters.store.heal import heal
from adapters.store.history import Event, EventKind, VerdictAction, append_events
from adapters.store.integrity import digest_of, file_entry
from adapters.store.manifest import MANIFEST_FILE, FileEntry, Manifest, ManifestDraft
from adapters.store.quarantine import Quarantined, write_quarantine
from adapters.store.reader import StoreReader
from adapters.store.usage import users
from adapters.store.version_files import EVALUATION_FILE, MAX_BYTES, mode_of

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


def _own_files(draft: ManifestDraft) -> list[str]:
    """Files that a version takes from a folder: where it was not evaluated, no items of some other evaluation."""
    return [name for name in MAX_BYTES if name != EVALUATION_FILE or draft.evaluation is not None]


@dataclass(frozen=True)
class Collected:
    """Counts of what `gc` removed."""

    num_staged: int
    removed: tuple[Target, ...]


class AdapterStore(StoreReader):
    """Versions, aliases and history of all adapters; safe for several processes at once.

    Every method that writes raises `StoreDiskError` if the disk is full, and then changes nothing.
    """

    def __init__(self, root: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(root)
        self._clock = clock

    def publish(self, source: Path, draft: ManifestDraft, *, base_folder: Path | None = None) -> Manifest:
        """Copy a PEFT folder into the store as the next version of `draft.name`; a failure leaves no trace.

        Args:
            base_folder: The prepared base, to check that the adapter's modules exist in it, and to compute what serving
                DoRA needs. None: of a DoRA folder that holds this already, as a version's does.

        Raises:
            InvalidReferenceError: `draft.name` is not a valid adapter name.
            InvalidAdapterError: The folder is broken, or contradicts the draft.
            UnsupportedAdapterError: vLLM cannot serve it.
            BaseModelMismatchError: Its fingerprint or `base_folder` belongs to another base.
        """
        self.folders.adapter(draft.name)
        check_publishable(source, draft, base_folder)
        with self.folders.staged() as staged:
            for name in _own_files(draft):
                if (source / name).is_file():
                    copy_file(real_file(source, name), staged / name, mode=mode_of(name))
            if draft.lora.use_dora:
                add_dora(staged, base_folder, draft.base.digest)
            files = tuple(file_entry(staged, path.name) for path in sorted(staged.iterdir()))
            with self._writing(draft.name) as folder:
                return self._commit(folder, staged, draft, files)

    def adopt(self, staged: Path, target: Target) -> None:
        """Rename a staged, complete and verified folder into place; does nothing if the version exists.

        Unlike `publish` it records no event: the history is mirrored from the same remote.
        """
        with self.folders.locked(target.name) as folder:
            place = folder / str(target.version)
            if is_complete(place):
                return
            if place.exists():
                discard_version(folder, target.version)
            rename_folder(staged, place)

    def promote(self, name: str, version: int, alias: str = DEFAULT_ALIAS, reason: str = "") -> None:
        """Point an alias to a version; does nothing if it already points there.

        Raises:
            InvalidReferenceError: Not a valid adapter or alias name.
            AdapterNotFoundError: No such version.
        """
        self.set_aliases(name, {alias: version}, reason=reason)

    def set_aliases(
        self,
        name: str,
        moves: Mapping[str, int],
        canary_weight: float | None = None,
        is_shadow: bool | None = None,
        reason: str = "",
    ) -> None:
        """Move aliases and change the traffic split atomically.

        Args:
            moves: Version by alias.
            canary_weight: Share of requests for the canary, 0 to 1; None keeps it.
            is_shadow: Whether the canary's answers are discarded; None keeps it.

        Raises:
            InvalidReferenceError: Not a valid adapter or alias name.
            AdapterNotFoundError: No such adapter or version.
            InvalidSplitError: The weight is not 0 to 1, or there is no canary to send traffic to.
        """
        self._check_moves(name, moves)
        with self._writing(name) as folder:
            self._check_moves(name, moves)  # one may have been removed while we waited
            history, at = self.history(name), self._now()
            events = plan_moves(history, moves, at=at, reason=reason)
            events += plan_split((*history, *events), canary_weight, is_shadow, at=at, reason=reason)
            self._append(folder, events)

    def rollback(self, name: str, alias: str = DEFAULT_ALIAS, reason: str = "") -> Target:
        """Point an alias back to its version before the last promotion.

        Raises:
            InvalidReferenceError: Not a valid adapter or alias name.
            AdapterNotFoundError: The alias has no earlier version that still exists.
        """
        parse_alias(name, alias)
        self.resolve(f"{name}@{alias}")
        with self._writing(name) as folder:
            history = self.history(name)
            version = rollback_version(history, alias)
            previous = current_aliases(history).get(alias)
            if version is None:
                raise AdapterNotFoundError(
                    f"'{name}@{alias}' points to version {previous} and has no earlier one to restore. "
                    f"Promote a version instead; {name!r} has {self.versions(name)}."
                )
            self._record(folder, "rolled_back", version, alias=alias, previous=previous, reason=reason)
        return Target(name, version)

    def conclude(
        self, name: str, trial: Trial, action: Conclusion, reason: str, figures: Mapping[str, float] | None = None
    ) -> None:
        """Let the canary take stable's place ("promote"), or its alias go to stable ("rollback"); the split ends.

        Raises:
            InvalidReferenceError: `name` is not a valid adapter name.
            TrialOverError: Stable or canary has changed since; no alias was moved.
        """
        self.folders.adapter(name)
        with self._writing(name) as folder:
            history = self.history(name)
            check_running(name, history, trial)
            event = plan_conclusion(trial, action, at=self._now(), reason=reason, figures=dict(figures or {}))
            self._append(folder, [event])

    def record_verdict(
        self, name: str, trial: Trial, action: VerdictAction, reason: str, figures: Mapping[str, float] | None = None
    ) -> None:
        """Record a verdict without moving an alias.

        Raises:
            InvalidReferenceError: `name` is not a valid adapter name.
            TrialOverError: Stable or canary has changed since.
        """
        self.folders.adapter(name)
        with self._writing(name) as folder:
            check_running(name, self.history(name), trial)
            event = Event(
                kind="judged",
                at=self._now(),
                version=trial.canary,
                action=action,
                reason=reason,
                figures=dict(figures or {}),
            )
            self._append(folder, [event])

    def pin(self, target: Target, reason: str = "") -> None:
        """Keep a version resident; does nothing if it is already pinned.

        Raises:
            AdapterNotFoundError: No such version.
        """
        self._set_pin(target, "pinned", reason)

    def unpin(self, target: Target, reason: str = "") -> None:
        """Remove a pin; does nothing if there is none.

        Raises:
            AdapterNotFoundError: No such version.
        """
        self._set_pin(target, "unpinned", reason)

    def quarantine(self, target: Target, reason: str) -> None:
        """Take a version out of service; if it already is, the first reason is kept.

        Raises:
            AdapterNotFoundError: No such version.
        """
        self.folder(target)
        with self._writing(target.name) as folder:
            versions = self.quarantined(target.name)
            if target.version not in versions:
                write_quarantine(folder, versions | {target.version: Quarantined(since=self._now(), reason=reason)})

    def lift_quarantine(self, target: Target) -> None:
        """Put a version back into service; does nothing if it already is.

        Raises:
            AdapterNotFoundError: No such version.
        """
        self.folder(target)
        with self._writing(target.name) as folder:
            versions = self.quarantined(target.name)
            if versions.pop(target.version, None) is not None:
                write_quarantine(folder, versions)

    def remove(self, target: Target, reason: str = "", *, ends_aliases: bool = False) -> None:
        """Delete a version; its number is never used again.

        Args:
            ends_aliases: Send its aliases back to the versions before it, and end those that have none.

        Raises:
            AdapterNotFoundError: No such version.
            AdapterInUseError: An alias points to it, or a server has it loaded; with `ends_aliases`, it is in a trial.
        """
        self.folder(target)
        with self._writing(target.name) as folder:
            self.folder(target)
            self._check_unused(target, ends_aliases=ends_aliases)
            # Recorded first: were it lost after the rename, the number could be given out again.
            history = self.history(target.name)
            self._append(folder, plan_removal(history, target.version, at=self._now(), reason=reason))
            try:
                discard_version(folder, target.version)
            except OSError as error:
                # Gone for every reader all the same; the next writer deletes the folder.
                logger.warning("The folder of %s, which is removed, stays for now: %s", target, error)

    def heal(self, name: str) -> None:
        """Recover from killed writers; every writer does this itself.

        Raises:
            IntegrityError: The history is broken in the middle.
        """
        with self._writing(name):
            pass

    def gc(self, *, keep_last: int | None = None) -> Collected:
        """Remove leftovers of killed publishers, and old versions without an alias, a pin or a server that uses them.

        Args:
            keep_last: Number of newest versions to keep per adapter; None keeps all.

        Raises:
            ValueError: `keep_last` is negative.
        """
        if keep_last is not None and keep_last < 0:
            raise ValueError(f"keep_last must be 0 or more; got {keep_last}.")
        num_staged = self.folders.clear_staging()
        for name in self.folders.names():
            self.heal(name)
        old = [] if keep_last is None else [t for n in self.names() for t in self._unused(n, keep_last)]
        removed = [target for target in old if self._is_removed(target, reason=f"gc, keep_last {keep_last}")]
        return Collected(num_staged, tuple(removed))

    def _commit(self, folder: Path, staged: Path, draft: ManifestDraft, files: tuple[FileEntry, ...]) -> Manifest:
        manifest = Manifest(
            **dict(draft),
            version=self._next_version(draft.name),
            digest=digest_of(files),
            files=files,
            created_at=self._now(),
        )
        # Written last: its presence marks the folder complete.
        write_file(staged / MANIFEST_FILE, f"{manifest.model_dump_json(indent=2)}\n".encode())
        place = folder / str(manifest.version)
        try:
            rename_folder(staged, place)
            self._record(folder, "published", manifest.version)
        except OSError:
            with suppress(FileNotFoundError):
                place.rename(staged)
            raise
        return manifest

    def _next_version(self, name: str) -> int:
        recorded = [event.version for event in self.history(name) if event.version is not None]
        return max([0, *recorded, *version_folders(self.folders.adapter(name))]) + 1

    def _unused(self, name: str, keep_last: int) -> list[Target]:
        versions = self.versions(name)
        newest = versions[len(versions) - min(keep_last, len(versions)) :]
        kept = {*newest, *self.aliases(name).values(), *self.pins(name)}
        return [Target(name, version) for version in versions if version not in kept]

    def _is_removed(self, target: Target, reason: str) -> bool:
        try:
            self.remove(target, reason)
        except AdapterInUseError as error:
            logger.info("gc skips %s: %s", target, error)
            return False
        return True

    def _check_unused(self, target: Target, *, ends_aliases: bool) -> None:
        trial = self.trial(target.name) if ends_aliases else None
        if trial is not None and target.version in (trial.stable, trial.canary):
            raise AdapterInUseError(f"{str(target)!r} is in the trial of {trial.canary} against {trial.stable}.")
        aliases = sorted(a for a, version in self.aliases(target.name).items() if version == target.version)
        if aliases and not ends_aliases:
            raise AdapterInUseError(
                f"{str(target)!r} is {' and '.join(aliases)}. Promote another version first: "
                f"{target.name!r} has {self.versions(target.name)}."
            )
        if who := users(self.root, target):
            raise AdapterInUseError(f"{str(target)!r} is loaded by {' and by '.join(who)}. Unload it there first.")

    def _check_moves(self, name: str, moves: Mapping[str, int]) -> None:
        for alias, version in moves.items():
            parse_alias(name, alias)
            self.folder(Target(name, version))
        if not self.versions(name):
            raise AdapterNotFoundError(f"There is no {name!r}. {self.existing(name)}")

    def _set_pin(self, target: Target, kind: EventKind, reason: str) -> None:
        self.folder(target)
        with self._writing(target.name) as folder:
            self.folder(target)
            if (target.version in self.pins(target.name)) != (kind == "pinned"):
                self._record(folder, kind, target.version, reason=reason)

    def _record(
        self,
        folder: Path,
        kind: EventKind,
        version: int,
        *,
        alias: str | None = None,
        previous: int | None = None,
        reason: str = "",
    ) -> None:
        event = Event(kind=kind, at=self._now(), version=version, alias=alias, previous=previous, reason=reason)
        self._append(folder, [event])

    def _append(self, folder: Path, events: Sequence[Event]) -> None:
        append_events(folder, events)
        for event in events:
            logger.info("%s: %s", folder.name, event.model_dump_json(exclude_none=True))

    def _now(self) -> str:
        return self._clock().isoformat(timespec="seconds")

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Hold an adapter's lock after recovery from killed writers; yields its folder."""
        with self.folders.locked(name) as folder:
            heal(folder, at=self._now())
            yield folder
