"""Hashes of a version's files, and their verification against the manifest."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from adapters.bases import sha256_file
from adapters.errors import IntegrityError
from adapters.reference import Target
from adapters.store.manifest import MANIFEST_FILE, FileEntry, Manifest
from adapters.store.version_files import MAX_BYTES, MAX_MANIFEST_BYTES


def file_entry(folder: Path, path: str) -> FileEntry:
    return FileEntry(path=path, size_bytes=(folder / path).stat().st_size, sha256=sha256_file(folder / path))


def digest_of(files: Iterable[FileEntry]) -> str:
    """SHA-256 over the sorted `path sha256` lines."""
    lines = sorted(f"{entry.path} {entry.sha256}\n" for entry in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_manifest(folder: Path, target: Target) -> Manifest:
    """Read the manifest of a version folder.

    Raises:
        IntegrityError: It is too large, cannot be read, or belongs to another version.
    """
    path = folder / MANIFEST_FILE
    if (size_bytes := path.stat().st_size) > MAX_MANIFEST_BYTES:
        raise IntegrityError(
            f"{MANIFEST_FILE} of {target} has {size_bytes} bytes; the limit is {MAX_MANIFEST_BYTES}. "
            "Publish the adapter again."
        )
    return parse_manifest(path.read_bytes(), target)


def parse_manifest(content: bytes, target: Target) -> Manifest:
    """Parse the manifest of a version.

    Raises:
        IntegrityError: It cannot be read, or belongs to another version.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise IntegrityError(f"{MANIFEST_FILE} of {target} is broken. Publish the adapter again.") from error
    if manifest.lora_name != str(target):
        raise IntegrityError(f"The folder of {target} holds the manifest of {manifest.lora_name}.")
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Check that a manifest lists only files of a version, each once, and that its digest matches.

    Raises:
        IntegrityError: It lists an unknown file or one outside the folder, or contradicts itself.
    """
    subject, paths = manifest.lora_name, [entry.path for entry in manifest.files]
    for path in paths:
        if path not in MAX_BYTES:
            raise IntegrityError(
                f"{subject}: its manifest lists {path[:200]!r}; a version may hold only {sorted(MAX_BYTES)}. "
                "Publish the adapter again."
            )
        if paths.count(path) > 1:
            raise IntegrityError(f"{subject}: its manifest lists {path!r} twice. Publish the adapter again.")
    for entry in manifest.files:
        if not 0 <= entry.size_bytes <= MAX_BYTES[entry.path]:
            raise IntegrityError(
                f"{subject}: its manifest says {entry.size_bytes} bytes of {entry.path!r}; "
                f"the limit is {MAX_BYTES[entry.path]}. Publish the adapter again."
            )
    if (got := digest_of(manifest.files)) != manifest.digest:
        raise IntegrityError(
            f"{subject}: the manifest's files give digest {got}, but it says {manifest.digest}. "
            "Publish the adapter again."
        )


def verify_folder(folder: Path, manifest: Manifest) -> None:
    """Compare every file of a version folder with its manifest.

    Raises:
        IntegrityError: A file is missing, unknown or changed, or the manifest contradicts itself.
    """
    subject = manifest.lora_name
    check_manifest(manifest)
    for path in (folder, folder / MANIFEST_FILE):
        if path.is_symlink():
            raise IntegrityError(f"{subject}: {path.name!r} is a symbolic link. Publish the adapter again.")
    wanted = {entry.path for entry in manifest.files} | {MANIFEST_FILE}
    for name in sorted({entry.name for entry in folder.iterdir()} - wanted):
        raise IntegrityError(f"{subject} holds {name!r}, which its manifest does not list. Delete that file.")
    for entry in manifest.files:
        verify_file(folder, entry, subject)


def verify_file(folder: Path, entry: FileEntry, subject: str) -> None:
    path = folder / entry.path
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(f"{subject} lacks its file {entry.path!r}. Publish the adapter again.")
    if (size_bytes := path.stat().st_size) != entry.size_bytes:
        raise IntegrityError(
            f"{subject}: {entry.path!r} has {size_bytes} bytes, its manifest says {entry.size_bytes}. "
            "Publish the adapter again."
        )
    if (sha256 := sha256_file(path)) != entry.sha256:
        raise IntegrityError(
            f"{subject}: {entry.path!r} has SHA-256 {sha256}, its manifest says {entry.sha256}. "
            "Publish the adapter again."
        )
