"""Versions of data sets on disk: `<datasets>/<domain>/<digest>/`, never changed, and `current`, the one that is read.

A version is written to a temporary folder beside it and renamed, with its manifest last. The pointer is renamed into
place after that, so an interrupted build leaves the data set that was there before.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from adapters.reference import is_adapter_name
from adapters.store.durable import file_lock, replace_file, sync_folder
from config.dataset import (
    CURRENT_FILE,
    DATASET_MANIFEST_FILE,
    DIGEST_CHARS,
    FINDINGS_FILE,
    SPLITS,
    DatasetManifest,
    FileRecord,
    Split,
    hash_splits,
    read_dataset,
    sha256_of,
    verify_dataset,
    version_folder,
)
from config.errors import DatasetError
from config.private import make_private_folder, write_private
from config.rows import AnyRow, row_to_json
from train.data.steps import Step

OWN_FILES = (*(f"{split}.jsonl" for split in SPLITS), FINDINGS_FILE)
LOCK_FILE = ".lock"
_STAGING = ".staging-"


def write_version(
    folder: Path, manifest: DatasetManifest, rows: Mapping[Split, Iterable[AnyRow]], steps: Sequence[Step]
) -> DatasetManifest:
    """Write a version below a domain's folder and make it the current one; returns its complete manifest.

    Args:
        manifest: Without what follows from the files: hashes, digest and date.
    """
    with new_version(folder) as staging:
        for split in SPLITS:
            _write_lines(staging / f"{split}.jsonl", map(row_to_json, rows[split]))
        _write_lines(staging / FINDINGS_FILE, _finding_lines(steps))
        manifest = _sealed(manifest, staging)
        write_private(staging / DATASET_MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
        adopt_version(folder, staging, manifest.version)
    return manifest


@contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """An empty private folder beside the versions, held alone; removed unless it is adopted."""
    make_private_folder(folder.parent)
    make_private_folder(folder)
    write_private(folder / LOCK_FILE, "")
    with file_lock(folder / LOCK_FILE):
        for left in folder.glob(f"{_STAGING}*"):  # of a build that was killed
            shutil.rmtree(left)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def adopt_version(folder: Path, staging: Path, version: str) -> None:
    """Rename a complete folder to its version, and point to it. An equal one that is intact is kept."""
    target = folder / version
    if not is_intact(target):
        shutil.rmtree(target, ignore_errors=True)
        sync_folder(staging)
        staging.rename(target)
        sync_folder(folder)
    point_to(folder, version)
    for name in (*OWN_FILES, DATASET_MANIFEST_FILE):  # a data set from before there were versions
        (folder / name).unlink(missing_ok=True)


def point_to(folder: Path, version: str) -> None:
    """Make a version the current one, atomically."""
    replace_file(folder / CURRENT_FILE, f"{version}\n".encode(), mode=0o600)


def is_intact(folder: Path) -> bool:
    try:
        verify_dataset(folder)
    except (DatasetError, FileNotFoundError):
        return False
    return True


def versions_of(folder: Path) -> list[Path]:
    """Folders of a domain's versions that are complete, the oldest first."""
    found = [path.parent for path in folder.glob(f"{'[0-9a-f]' * DIGEST_CHARS}/{DATASET_MANIFEST_FILE}")]
    return sorted(found, key=lambda path: (path / DATASET_MANIFEST_FILE).stat().st_mtime_ns)


def list_versions(datasets: Path) -> list[tuple[DatasetManifest, bool]]:
    """Every complete version, and whether it is its domain's current one.

    Raises:
        DatasetError: A manifest or a pointer is damaged.
    """
    return [
        (read_dataset(version), version == version_folder(datasets / domain))
        for domain in domains_of(datasets)
        for version in versions_of(datasets / domain)
    ]


def domains_of(datasets: Path) -> list[str]:
    """Names of the domains that have a folder, sorted."""
    if not datasets.is_dir():
        return []
    return sorted(path.name for path in datasets.iterdir() if path.is_dir() and is_adapter_name(path.name))


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    write_private(path, "")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def _finding_lines(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        for found in step.findings:
            fields = {
                "step": step.name,
                "row": found.origin.model_dump() if found.origin else None,
                "reason": found.reason,
                "text": found.text,
                "other": found.other.model_dump() if found.other else None,
            }
            yield json.dumps({k: v for k, v in fields.items() if v is not None}, ensure_ascii=False) + "\n"


def _sealed(manifest: DatasetManifest, folder: Path) -> DatasetManifest:
    files = tuple(
        FileRecord(name=name, size_bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in OWN_FILES
    )
    manifest = manifest.model_copy(
        update={
            "files": files,
            "dataset_sha256": hash_splits(folder),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    return manifest.model_copy(update={"digest": manifest.content_digest()})
