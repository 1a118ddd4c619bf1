"""Hashes of a version's files, and the proof that they are still what the manifest promised."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from adapters.base import sha256_file
from adapters.errors import IntegrityError
from adapters.manifest import MANIFEST_FILE, FileEntry, Manifest


def file_entry(folder: Path, path: str) -> FileEntry:
    return FileEntry(path=path, size_bytes=(folder / path).stat().st_size, sha256=sha256_file(folder / path))


def digest_of(files: Iterable[FileEntry]) -> str:
    """SHA-256 over the sorted `path sha256` lines."""
    lines = sorted(f"{entry.path} {entry.sha256}\n" for entry in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify_folder(folder: Path, manifest: Manifest) -> None:
    """Compare every file of a version folder with its manifest.

    Raises:
        IntegrityError: A file is missing, unknown or changed, or the manifest contradicts itself.
    """
    subject = manifest.lora_name
    wanted = {entry.path for entry in manifest.files} | {MANIFEST_FILE}
    for path in sorted({entry.name for entry in folder.iterdir()} - wanted):
        raise IntegrityError(f"{subject} holds {path!r}, which its manifest does not know. Delete that file.")
    for entry in manifest.files:
        _verify_file(folder, entry, subject)
    if (got := digest_of(manifest.files)) != manifest.digest:
        raise IntegrityError(
            f"{subject}: the manifest's files give digest {got}, but it promises {manifest.digest}. "
            "Publish the adapter again."
        )


def _verify_file(folder: Path, entry: FileEntry, subject: str) -> None:
    path = folder / entry.path
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(f"{subject} lacks its file {entry.path!r}. Publish the adapter again.")
    if (size_bytes := path.stat().st_size) != entry.size_bytes:
        raise IntegrityError(
            f"{subject}: {entry.path!r} has {size_bytes} bytes, its manifest promises {entry.size_bytes}. "
            "Publish the adapter again."
        )
    if (sha256 := sha256_file(path)) != entry.sha256:
        raise IntegrityError(
            f"{subject}: {entry.path!r} has SHA-256 {sha256}, its manifest promises {entry.sha256}. "
            "Publish the adapter again."
        )
