"""Data sets at a remote folder: `<url>/<domain>/<version>/…` and `<url>/<domain>/current`, as on the local disk.

A version's name is its digest, so the same name means the same bytes: nothing is ever overwritten but the pointer.
"""

import re
from pathlib import Path

from pydantic import ValidationError

from adapters.errors import IntegrityError
from adapters.remote.files import RemoteFiles
from config.dataset import (
    CURRENT_FILE,
    DATASET_MANIFEST_FILE,
    DIGEST_CHARS,
    DatasetManifest,
    FileRecord,
    sha256_of,
    verify_dataset,
    version_folder,
)
from config.errors import DatasetError
from config.private import write_private
from train.data.versions import OWN_FILES, adopt_version, is_intact, new_version, point_to

_MAX_MANIFEST_BYTES = 16 * 2**20
_MAX_POINTER_BYTES = 1024


def push_dataset(folder: Path, remote: RemoteFiles, version: str | None = None) -> DatasetManifest:
    """Upload a version unless it is there, its manifest last, and point the remote to it.

    Args:
        folder: The domain's folder.
        version: None: the current one.

    Raises:
        DatasetError: The version does not exist, or its files changed.
        RemoteStoreError: The remote is unreachable.
    """
    local = version_folder(folder) if version is None else folder / _checked(version, folder.name)
    manifest = verify_dataset(local)
    if not manifest.digest:
        raise DatasetError(f"Data set {folder.name!r} was built before versions. Build it again with `--force`.")
    place = f"{folder.name}/{manifest.version}"
    if _manifest_at(remote, place) != manifest:
        for name in (*OWN_FILES, DATASET_MANIFEST_FILE):
            remote.upload(local / name, f"{place}/{name}")
    remote.write(f"{folder.name}/{CURRENT_FILE}", f"{manifest.version}\n".encode())
    return manifest


def pull_dataset(remote: RemoteFiles, folder: Path, version: str | None = None) -> DatasetManifest:
    """Download a version unless it is here, verify every byte by its digest, and make it the current one.

    Args:
        folder: The domain's folder; created if needed.
        version: None: the remote's current one.

    Raises:
        DatasetError: The remote has no such data set or version.
        IntegrityError: Its files differ from its digest; nothing is kept.
        RemoteStoreError: The remote is unreachable.
    """
    wanted = _checked(version, folder.name) if version else _current_at(remote, folder.name)
    if is_intact(folder / wanted):
        point_to(folder, wanted)
        return verify_dataset(folder / wanted)
    place = f"{folder.name}/{wanted}"
    manifest = _manifest_at(remote, place)
    if manifest is None:
        raise DatasetError(f"There is no version {wanted!r} of {folder.name!r} at {remote.url!r}. Push it first.")
    _check_manifest(manifest, wanted, remote.url)
    with new_version(folder) as staging:
        for record in manifest.files:
            _download(remote, place, record, staging)
        write_private(staging / DATASET_MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
        adopt_version(folder, staging, manifest.version)
    return manifest


def _download(remote: RemoteFiles, place: str, record: FileRecord, staging: Path) -> None:
    local = staging / record.name

    def check() -> None:
        found = sha256_of(local)
        if found != record.sha256:
            raise IntegrityError(
                f"{place}/{record.name} at {remote.url!r} has SHA-256 {found[:12]}…, its manifest says "
                f"{record.sha256[:12]}…. Push it again."
            )

    write_private(local, "")
    remote.download(f"{place}/{record.name}", local, size_bytes=record.size_bytes, check=check)


def _current_at(remote: RemoteFiles, domain: str) -> str:
    content = remote.read(f"{domain}/{CURRENT_FILE}", max_bytes=_MAX_POINTER_BYTES)
    if content is None:
        raise DatasetError(f"There is no data set {domain!r} at {remote.url!r}. Check the URL, or push one there.")
    return _checked(content.decode("ascii", errors="replace").strip(), domain)


def _manifest_at(remote: RemoteFiles, place: str) -> DatasetManifest | None:
    content = remote.read(f"{place}/{DATASET_MANIFEST_FILE}", max_bytes=_MAX_MANIFEST_BYTES)
    if content is None:
        return None
    try:
        return DatasetManifest.model_validate_json(content)
    except ValidationError as error:
        raise IntegrityError(
            f"{place}/{DATASET_MANIFEST_FILE} at {remote.url!r} is not readable ({error.errors()[0]['msg']}). "
            "Push it again, or update Lorikeet."
        ) from error


def _check_manifest(manifest: DatasetManifest, version: str, url: str) -> None:
    """The digest covers the manifest, and the manifest every file: what is downloaded can only be what was pushed."""
    names = tuple(record.name for record in manifest.files)
    if manifest.content_digest() != manifest.digest or manifest.version != version or names != OWN_FILES:
        raise IntegrityError(
            f"The manifest of {version!r} at {url!r} has digest {manifest.content_digest()[:DIGEST_CHARS]!r}; "
            "its folder's name is wanted. Push it again."
        )


def _checked(version: str, domain: str) -> str:
    if not re.fullmatch(rf"[0-9a-f]{{{DIGEST_CHARS}}}", version):
        raise DatasetError(
            f"A version of {domain!r} must be {DIGEST_CHARS} hex digits, as `lorikeet data list` shows; "
            f"got {version[:40]!r}."
        )
    return version
