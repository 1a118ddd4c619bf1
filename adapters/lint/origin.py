"""Lint of an adapter's declared origin: its base model and task type."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters.bases import read_base
from adapters.lint.config import LintFinding
from adapters.store.manifest import MANIFEST_FILE

# How a name tells a model's number format, quantizer or file format; none of them makes it another model.
_FORMATS = re.compile(
    r"[-_.](gguf|mlx|hf|bnb|unsloth|dynamic|gptq|awq|autoround|hqq|exl2|marlin|quantized|\d-?bit|nf4|fp[48]|int[48]|"
    r"(b|fp|f)(16|32)|i?q\d(_[0-9a-z]+)*|w\d+a\d+|g\d+|a?sym)$"
)
_MAX_NAME_CHARS = 300


def check_origin(config: dict[str, Any], base_folder: Path | None) -> Iterator[LintFinding]:
    """Warn of a task other than text generation, and of a base model with another name."""
    task = config.get("task_type")
    task_name = str(task).rpartition(".")[2]  # TaskType.CAUSAL_LM, where it is an enum
    if task and task_name != "CAUSAL_LM":
        yield LintFinding(
            "warning",
            "task-type",
            f"task_type is {task_name[:80]!r}; Lorikeet serves only text generation ('CAUSAL_LM').",
            "Check what it was trained for.",
        )
    said = config.get("base_model_name_or_path")
    if base_folder is None or not isinstance(said, str) or not said.strip():
        return
    name, source = _names_of_base(base_folder)
    if not names_same_model(said, name, source):
        of = f" ({source})" if source else ""
        yield LintFinding(
            "warning",
            "other-base",
            f"It was trained on {said[:200]!r} according to its configuration, but this base is {name!r}{of}.",
            "Give the base that it names, unless both are one model: shapes may fit where answers do not.",
        )


def names_same_model(said: str, name: str, source: str) -> bool:
    """Whether an adapter's `base_model_name_or_path` refers to a prepared base.

    Case, an organisation or folders before the name, a revision, and quantization suffixes are ignored.

    Args:
        said: A hub id, a path or a name.
        name: The prepared base's name.
        source: What it was prepared from; "" if unknown.
    """
    last = _last_part(said)
    if last == name.lower() or (_is_ours(said) and model_name(last) == model_name(name)):
        return True
    wanted = model_name(said)
    return any(model_name(text) == wanted for text in (source, *re.split(r"[\s()]+", source)) if text)


def model_name(text: str) -> str:
    """`llama-3.2-1b-instruct` of `unsloth/Llama-3.2-1B-Instruct-bnb-4bit@main`."""
    name = _last_part(text)
    while (shorter := _FORMATS.sub("", name)) != name:
        name = shorter
    return name.removeprefix("meta-")


def _last_part(text: str) -> str:
    """The name itself, in lower case; in a hub's cache it is that of `models--org--name/snapshots/REVISION`."""
    parts = text.strip()[-_MAX_NAME_CHARS:].replace("\\", "/").rstrip("/").split("/")
    if "snapshots" in parts[1:] and (repository := parts[parts.index("snapshots") - 1]).startswith("models--"):
        parts = repository.split("--", 2)
    return parts[-1].partition("@")[0].lower()


def _is_ours(said: str) -> bool:
    """Whether it is a path to a prepared base, whose name includes the quantization."""
    return Path(said).parent.name == "bases"


def _names_of_base(folder: Path) -> tuple[str, str]:
    if not (folder / MANIFEST_FILE).is_file():
        return folder.name, ""
    manifest = read_base(folder)
    return manifest.name, manifest.source
