"""A remote adapter store (s3, gs, hf, a shared folder) and its local cache, which is an ordinary store.

The remote has the store's own layout: `<url>/<name>/history.jsonl` and `<url>/<name>/<version>/…`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapters.errors import AdapterNotFoundError, IntegrityError, RemoteConflictError, RemoteStoreError
from adapters.reference import Target, is_adapter_name
from adapters.remote.files import RemoteFiles
from adapters.remote.mirror import grown_apart, local_history, mirror_history
from adapters.store.durable import seal_file, whole_lines, write_file
from adapters.store.history import HISTORY_FILE, published_versions, removed_versions
from adapters.store.integrity import check_manifest, parse_manifest, verify_file
from adapters.store.manifest import MANIFEST_FILE, Manifest
from adapters.store.store import AdapterStore
from adapters.store.version_files import MAX_HISTORY_BYTES, MAX_MANIFEST_BYTES, mode_of

logger = logging.getLogger(__name__)


class RemoteStore:
    """Histories are mirrored by `sync`; versions are fetched on first use."""

    def __init__(
        self,
        url: str,
        store: AdapterStore,
        *,
        storage_options: Mapping[str, Any] = MappingProxyType({}),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
            url: Any URL that fsspec supports, e.g. `s3://bucket/adapters`.
            store: The cache. It may also hold local versions.
            storage_options: fsspec's options for that kind of storage (`endpoint_url`, `token`…).

        Raises:
            RemoteStoreError: The URL is invalid, or its kind of storage needs a package that is not installed.
        """
        self._store = store
        self._files = RemoteFiles(url, storage_options=storage_options, sleep=sleep)
        self.url = self._files.url
        """The URL without credentials, for messages."""
        self._stamps: dict[str, str] = {}

    def sync(self, name: str | None = None) -> tuple[str, ...]:
        """Mirror the histories that changed; returns the adapters whose local history changed.

        Args:
            name: Only this adapter; None: all.

        Raises:
            AdapterNotFoundError: The remote has no adapter `name`.
            IntegrityError: A remote history is broken; the others are still mirrored.
            RemoteConflictError: A local history has diverged; the others are still mirrored.
            RemoteStoreError: The remote is unreachable.
            StoreDiskError: The local disk is full.
        """
        if name is not None:
            self._store.folders.adapter(name)
        # Other names, `..` among them, are no adapters and are never touched.
        names = [name] if name is not None else list(filter(is_adapter_name, self._files.names()))
        changed: list[str] = []
        problems: list[IntegrityError | RemoteConflictError] = []
        for each in names:
            try:
                if self._mirror(each, must_exist=name is not None):
                    changed.append(each)
            except (IntegrityError, RemoteConflictError) as error:
                logger.warning("%s is not mirrored: %s", each, error)
                problems.append(error)
        if problems:
            raise problems[0]
        return tuple(changed)

    def locate(self, reference_text: str) -> Target:
        """Resolve a model reference by the mirrored history, and fetch the version if it is not cached.

        Sends no request if the version is cached.

        Raises:
            InvalidReferenceError: Not of the form `name`, `name@version` or `name@alias`.
            AdapterNotFoundError: No such adapter, version or alias.
            IntegrityError: The remote's files differ from their manifest.
            RemoteStoreError: The remote is unreachable, or lacks the version.
            StoreDiskError: The local disk is full.
        """
        target = self._store.recorded(reference_text)
        self.fetch(target)
        return target

    def fetch(self, target: Target) -> Path:
        """Fetch a version of the mirrored history, only once for concurrent threads and processes.

        Raises:
            AdapterNotFoundError: The mirrored history lacks the version, or it was removed.
            IntegrityError: The remote's files differ from their manifest.
            RemoteStoreError: The remote is unreachable, or lacks the version.
            StoreDiskError: The local disk is full.
        """
        if not self._store.has_version(target):
            self._check_published(target)
            with self._store.folders.staged_alone(target) as staged:
                if not self._store.has_version(target):  # another may have been faster
                    self._download(target, staged)
                    self._store.adopt(staged, target)
        return self._store.folder(target)

    def in_traffic(self, name: str) -> list[Target]:
        """The versions of an adapter that an alias points to or that are pinned, by the mirrored history."""
        versions = {*self._store.aliases(name).values(), *self._store.pins(name)}
        return [Target(name, version) for version in sorted(versions)]

    def push(self, target: Target) -> tuple[Target, ...]:
        """Push a version, the versions its adapter's aliases point to, and the history; returns the new versions.

        Each version's manifest is uploaded last, and the history after all versions, so a reader never sees a partial
        version. Only one store at a time should push an adapter; a concurrent push fails with a conflict.

        Raises:
            AdapterNotFoundError: No such version.
            IntegrityError: The local files are damaged.
            RemoteConflictError: The remote has other files for that version number, or another history.
            RemoteStoreError: The remote is unreachable.
        """
        name = target.name
        self._store.verify(target)
        self._store.heal(name)  # the remote's history must name every version that it gets
        local = local_history(self._store.folders, name)
        remote = whole_lines(self._files.read(_history_path(name), max_bytes=MAX_HISTORY_BYTES) or b"")
        self._check_pushable(name, local, remote)
        versions = sorted({target.version, *self._store.aliases(name).values()})
        pushed = tuple(each for each in (Target(name, v) for v in versions) if self._push_version(each))
        if local != remote:
            self._push_history(name, local)
        return pushed

    def _mirror(self, name: str, *, must_exist: bool) -> bool:
        stamp = self._files.stamp(_history_path(name))
        if stamp is None and must_exist:
            raise AdapterNotFoundError(f"There is no {name!r} at {self.url!r}. Push a version of it first.")
        has_local = (self._store.folders.adapter(name) / HISTORY_FILE).exists()
        if stamp is None or (has_local and self._stamps.get(name) == stamp):
            return False
        content = self._files.read(_history_path(name), max_bytes=MAX_HISTORY_BYTES)
        has_changed = mirror_history(self._store.folders, name, content or b"", url=self.url)
        self._stamps[name] = stamp
        return has_changed

    def _check_published(self, target: Target) -> None:
        history = self._store.history(target.name)
        versions = published_versions(history) - removed_versions(history)
        if target.version not in versions:
            raise AdapterNotFoundError(
                f"There is no {str(target)!r}: the history of {target.name!r} has the versions {sorted(versions)}. "
                f"Pull it again: `lorikeet adapters pull {self.url} {target.name}`."
            )

    def _download(self, target: Target, staged: Path) -> None:
        """Fetch the files that the manifest lists, verified by size and SHA-256, and the manifest last."""
        content = self._files.read(_path(target, MANIFEST_FILE), max_bytes=MAX_MANIFEST_BYTES)
        if content is None:
            raise RemoteStoreError(
                f"The history at {self.url!r} has {str(target)!r}, but its folder is missing. "
                f"Push it from the store that published it: `lorikeet adapters push {target} {self.url}`."
            )
        manifest = parse_manifest(content, target)
        check_manifest(manifest)
        for entry in manifest.files:
            check, local = partial(verify_file, staged, entry, str(target)), staged / entry.path
            local.touch(mode=mode_of(entry.path) | 0o200)  # before its bytes come
            self._files.download(_path(target, entry.path), local, size_bytes=entry.size_bytes, check=check)
            seal_file(local, mode=mode_of(entry.path))
        write_file(staged / MANIFEST_FILE, content)
        logger.info("Fetched %s from %s, %d files", target, self.url, len(manifest.files))

    def _check_pushable(self, name: str, local: bytes, remote: bytes) -> None:
        if local.startswith(remote):
            return
        if remote.startswith(local):
            raise RemoteConflictError(
                f"The history of {name!r} at {self.url!r} is ahead of this store's. "
                f"Pull it first: `lorikeet adapters pull {self.url} {name}`."
            )
        raise grown_apart(name, local, remote, url=self.url)

    def _push_version(self, target: Target) -> bool:
        """Upload a version unless the remote already has it; returns whether it was uploaded."""
        remote = self._remote_manifest(target)
        if remote is not None and not self._store.has_version(target):
            return False
        manifest = self._store.verify(target)
        if remote is not None and remote.digest != manifest.digest:
            raise RemoteConflictError(
                f"{str(target)!r} at {self.url!r} has digest {remote.digest[:12]}, the local version has "
                f"{manifest.digest[:12]}. Versions never change: publish these files as a new version."
            )
        if remote is None:
            for name in (*(entry.path for entry in manifest.files), MANIFEST_FILE):
                self._files.upload(self._store.folder(target) / name, _path(target, name))
            logger.info("Pushed %s to %s", target, self.url)
        return remote is None

    def _remote_manifest(self, target: Target) -> Manifest | None:
        content = self._files.read(_path(target, MANIFEST_FILE), max_bytes=MAX_MANIFEST_BYTES)
        return parse_manifest(content, target) if content is not None else None

    def _push_history(self, name: str, content: bytes) -> None:
        self._files.write(_history_path(name), content)
        if self._files.read(_history_path(name), max_bytes=MAX_HISTORY_BYTES) != content:
            raise RemoteConflictError(
                f"Another store pushed {name!r} to {self.url!r} at the same time and finished first. "
                "Pull, then push again."
            )


def _path(target: Target, file: str) -> str:
    return f"{target.name}/{target.version}/{file}"


def _history_path(name: str) -> str:
    return f"{name}/{HISTORY_FILE}"
