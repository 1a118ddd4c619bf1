"""Read and verify prepared base folders: the manifest, and the files that it lists."""

import hashlib
import logging
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from adapters.errors import BaseNotFoundError, InvalidBaseError
from adapters.store.manifest import MANIFEST_FILE, BaseManifest, BaseRef, FileEntry

CHAT_TEMPLATE_FILE = "chat_template.jinja"

DEQUANTIZED_FOLDER = "dequantized"
"""In a base that was quantized before it was prepared: the same weights in bf16, for training."""

_BNB_PLUGIN, _BNB_PLUGIN_MODULE = "vllm-bnb-plugin", "vllm_bnb_plugin"
_TOKENIZER_PATTERNS = ("tokenizer.json", "tokenizer.model", "vocab.*", "merges.txt", "added_tokens.json")
_CHUNK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def read_base(folder: Path) -> BaseManifest:
    """Read the manifest of a prepared base and compare file sizes (cheap; `verify_base` hashes the files).

    Raises:
        BaseNotFoundError: No such folder.
        InvalidBaseError: The manifest is missing or unreadable, or a file is missing or has another size.
    """
    manifest = _read_manifest(folder)
    for entry in manifest.files:
        path = folder / entry.path
        size_bytes = path.stat().st_size if path.is_file() else None
        if size_bytes != entry.size_bytes:
            raise InvalidBaseError(
                f"Base {folder.name!r}: {entry.path!r} has {_bytes(size_bytes)}, its manifest says "
                f"{_bytes(entry.size_bytes)}. {_prepare_again(folder.name)}"
            )
    return manifest


def verify_base(folder: Path) -> BaseManifest:
    """`read_base`, then hash every file.

    Raises:
        BaseNotFoundError: No such folder.
        InvalidBaseError: As `read_base`, or a file whose SHA-256 differs from the manifest's.
    """
    manifest = read_base(folder)
    for entry in manifest.files:
        found = sha256_file(folder / entry.path)
        if found != entry.sha256:
            raise InvalidBaseError(
                f"Base {folder.name!r}: {entry.path!r} has SHA-256 {found[:12]}…, its manifest says "
                f"{entry.sha256[:12]}…. {_prepare_again(folder.name)}"
            )
    return manifest


def check_servable(manifest: BaseManifest) -> None:
    """Check that what is installed can serve a base that is stored like this.

    Raises:
        InvalidBaseError: A package is missing; the message says which.
    """
    if manifest.storage == "bitsandbytes" and find_spec(_BNB_PLUGIN_MODULE) is None:
        raise InvalidBaseError(
            f"Base {manifest.name!r} holds bitsandbytes' tensors, which vLLM reads with {_BNB_PLUGIN}, and that "
            f"package is not installed. Run `pip install --no-deps {_BNB_PLUGIN}`, or prepare the base with "
            "`--storage dequantized`."
        )


def weights_folder(folder: Path) -> Path:
    """Where a base's plain or bitsandbytes weights are: what training computes with, and exports read."""
    dequantized = folder / DEQUANTIZED_FOLDER
    return dequantized if dequantized.is_dir() else folder


def list_bases(root: Path) -> list[BaseManifest]:
    """Every usable base under `home.bases`, by name; unfinished folders are left out with a warning."""
    manifests = []
    for path in sorted(root.glob(f"[!.]*/{MANIFEST_FILE}")):
        try:
            manifests.append(read_base(path.parent))
        except InvalidBaseError as error:
            logger.warning("%s", error)
    return manifests


def find_base(root: Path, wanted: BaseRef, subject: str) -> BaseManifest:
    """The prepared base with a digest, whatever its name.

    Args:
        root: The folder of all bases.
        subject: What was trained on it, for the message.

    Raises:
        BaseNotFoundError: No prepared base has it.
    """
    bases = list_bases(root)
    for base in bases:
        if base.digest == wanted.digest:
            return base
    raise BaseNotFoundError(
        f"{subject!r} was trained on the base {wanted.name!r} with digest {wanted.digest[:12]}; prepared are "
        f"{[f'{base.name} {base.digest[:12]}' for base in bases]}. Prepare that base: `lorikeet base prepare`."
    )


def base_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file of a base folder but its manifest, hashed, sorted by path."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_FILE)
    return tuple(
        FileEntry(path=p.relative_to(folder).as_posix(), size_bytes=p.stat().st_size, sha256=sha256_file(p))
        for p in paths
    )


def weights_sha256(files: Iterable[FileEntry]) -> str:
    """SHA-256 over the `path sha256` lines of the safetensors files."""
    return _sha256_entries(f for f in files if f.path.endswith(".safetensors"))


def tokenizer_sha256(files: Iterable[FileEntry]) -> str:
    """SHA-256 over the files that decide the token ids (not over `tokenizer_config.json`, which holds paths)."""
    return _sha256_entries(f for f in files if any(Path(f.path).match(pattern) for pattern in _TOKENIZER_PATTERNS))


def chat_template_sha256(folder: Path) -> str:
    """SHA-256 of the chat template's text.

    Raises:
        InvalidBaseError: The folder has no `chat_template.jinja`.
    """
    path = folder / CHAT_TEMPLATE_FILE
    if not path.is_file():
        raise InvalidBaseError(
            f"Base {folder.name!r} has no {CHAT_TEMPLATE_FILE}. Prepare it with `--chat-template FILE`."
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def base_digest(weights: str, tokenizer: str, chat_template: str, quantization: str) -> str:
    """The identity of a base: two bases with the same digest give the same answers."""
    lines = f"weights {weights}\ntokenizer {tokenizer}\nchat_template {chat_template}\nquantization {quantization}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> BaseManifest:
    if not folder.is_dir():
        raise BaseNotFoundError(
            f"There is no base {folder.name!r}. Prepare it with `lorikeet base prepare`, or see `lorikeet base list`."
        )
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise InvalidBaseError(
            f"Base {folder.name!r} has no {MANIFEST_FILE}: its preparation is incomplete. {_prepare_again(folder.name)}"
        )
    try:
        return BaseManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidBaseError(
            f"Base {folder.name!r}: {MANIFEST_FILE} is not readable at "
            f"{'.'.join(map(str, problem['loc'])) or 'top'}: {problem['msg']}. {_prepare_again(folder.name)}"
        ) from error


def _sha256_entries(entries: Iterable[FileEntry]) -> str:
    lines = "".join(f"{e.path} {e.sha256}\n" for e in sorted(entries, key=lambda e: e.path))
    return hashlib.sha256(lines.encode()).hexdigest()


def _bytes(size_bytes: int | None) -> str:
    return "no file" if size_bytes is None else f"{size_bytes} bytes"


def _prepare_again(name: str) -> str:
    return f"Prepare it again: `lorikeet base prepare SOURCE --name {name} --force`."
