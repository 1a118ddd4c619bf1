"""`lorikeet export hub`: one version at a URL, as model hubs show it, and back into a store.

Unlike a remote store (`adapters push`) the URL holds one version and no history: PEFT's files and the model card at the
top, so that `PeftModel.from_pretrained` takes the repository, and the manifest beside them.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from adapters.bases import find_base
from adapters.errors import IntegrityError, RemoteConflictError, RemoteStoreError
from adapters.reference import Target
from adapters.remote.files import RemoteFiles
from adapters.store.integrity import check_manifest, digest_of, verify_file
from adapters.store.manifest import MANIFEST_FILE, Manifest, ManifestDraft
from adapters.store.store import AdapterStore
from adapters.store.version_files import MAX_MANIFEST_BYTES, PRIVATE_FILES
from config.home import Home

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


def push_version(
    home: Home,
    reference: str,
    url: str,
    *,
    is_private_included: bool = False,
    force: bool = False,
    storage_options: Mapping[str, Any] = _NO_OPTIONS,
) -> tuple[Manifest, str]:
    """Upload a version, the manifest last; returns the manifest as uploaded, and the URL as it may be shown.

    Args:
        is_private_included: Also upload the files that hold examples of the data.
        force: Replace another version at the URL.

    Raises:
        AdapterNotFoundError: No such version.
        IntegrityError: A file of the version differs from its manifest.
        RemoteConflictError: The URL holds another version and `force` is off.
        RemoteStoreError: The URL cannot be written.
    """
    store = AdapterStore(home.adapters)
    target = store.resolve(reference)
    manifest = store.verify(target)
    files = tuple(file for file in manifest.files if is_private_included or file.path not in PRIVATE_FILES)
    manifest = manifest.model_copy(update={"files": files, "digest": digest_of(files)})
    remote = RemoteFiles(url, storage_options=storage_options)
    _check_place(remote, manifest, force=force)
    for file in files:
        remote.upload(store.folder(target) / file.path, file.path)
    remote.write(MANIFEST_FILE, f"{manifest.model_dump_json(indent=2)}\n".encode())
    return manifest, remote.url


def pull_version(
    home: Home, url: str, name: str | None = None, *, storage_options: Mapping[str, Any] = _NO_OPTIONS
) -> Manifest:
    """Publish the version at a URL as the next version of its name; one that is here already is returned as it is.

    Args:
        name: Another name for the adapter.

    Raises:
        RemoteStoreError: The URL cannot be read, or holds no version.
        IntegrityError: The files differ from their manifest.
        BaseNotFoundError: The base that it was trained on is not prepared here.
    """
    remote = RemoteFiles(url, storage_options=storage_options)
    manifest = _read_manifest(remote)
    if manifest is None:
        raise RemoteStoreError(
            f"There is no {MANIFEST_FILE} at {remote.url!r}, so it was not pushed by `lorikeet export hub push`. "
            "Download the folder and use `lorikeet adapters import`."
        )
    check_manifest(manifest)
    store = AdapterStore(home.adapters)
    name = name or manifest.name
    store.folders.adapter(name)
    for version in store.versions(name):
        if store.manifest(Target(name, version)).digest == manifest.digest:
            return store.manifest(Target(name, version))
    base = find_base(home.bases, manifest.base, manifest.lora_name)
    with store.folders.staged() as folder:
        _download(remote, manifest, folder)
        fields = {field: getattr(manifest, field) for field in ManifestDraft.model_fields}
        draft = ManifestDraft(**fields | {"name": name})
        return store.publish(folder, draft, base_folder=home.bases / base.name)


def _check_place(remote: RemoteFiles, manifest: Manifest, *, force: bool) -> None:
    found = _read_manifest(remote)
    if found is not None and found.digest != manifest.digest and not force:
        raise RemoteConflictError(
            f"{remote.url!r} holds {found.lora_name}, {found.digest[:12]}; to push is {manifest.lora_name}, "
            f"{manifest.digest[:12]}. Choose another URL, or replace it with `--force`."
        )


def _read_manifest(remote: RemoteFiles) -> Manifest | None:
    content = remote.read(MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
    if content is None:
        return None
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise IntegrityError(
            f"{MANIFEST_FILE} at {remote.url!r} is no manifest of a version: "
            f"{'.'.join(map(str, problem['loc'])) or 'top'}: {problem['msg']}. Push the version again."
        ) from error


def _download(remote: RemoteFiles, manifest: Manifest, folder: Path) -> None:
    for entry in manifest.files:
        check = partial(verify_file, folder, entry, manifest.lora_name)
        (folder / entry.path).touch(mode=0o600)
        remote.download(entry.path, folder / entry.path, size_bytes=entry.size_bytes, check=check)
