"""Lint of an adapter's vocabulary: the base lacks tokens that were added for training."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters.lint.base_modules import Shape
from adapters.lint.config import LintFinding
from adapters.lint.peft_folder import LoraModule, LoraTensors
from adapters.lint.tensors import TensorHeader
from adapters.lint.words import examples
from adapters.store.strict_json import load_json

_TOKENIZER_FILE = "tokenizer.json"
_MAX_TOKENIZER_BYTES = 64 << 20
_VOCABULARY = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "tok_embeddings")
_TRAINABLE = "trainable_tokens_"
_REMEDY = (
    "All adapters share the base's vocabulary: train without added tokens, or merge the adapter and prepare the result "
    "as a new base."
)


def is_vocabulary(module: str) -> bool:
    """Whether a layer, by full name, has one row per token."""
    return module.rpartition(".")[2] in _VOCABULARY


def check_whole_layers(
    tensors: LoraTensors, headers: Mapping[str, TensorHeader], base: Mapping[str, Shape | None]
) -> tuple[list[LintFinding], list[str]]:
    """Findings on full or partial vocabulary layers; also returns the remaining tensors that are not LoRA.

    Args:
        headers: By name, those of `tensors.foreign` among them.
        base: Shapes of the base's layers; empty if the base is unknown.
    """
    whole = {name: module for name in tensors.foreign if (module := _vocabulary_layer(name))}
    others = [name for name in tensors.foreign if name not in whole]
    if not whole:
        return [], others
    added = [
        f"{name} has {rows} rows, the base {known}"
        for name, module in whole.items()
        if (rows := _num_rows(headers[name])) and (known := _rows_of_base(module, base)) and rows != known
    ]
    if added or any(_TRAINABLE in name for name in whole):
        message = f"It was trained with added tokens: {examples(added or list(whole))}."
        return [_unsupported(message, _REMEDY)], others
    return [
        _unsupported(
            f"It holds {examples(list(whole))} as full layers; trainers save them if tokens were added or "
            "modules_to_save is set.",
            "If that layer was not trained, save with save_embedding_layers=False. " + _REMEDY,
        )
    ], others


def resized(module: LoraModule, shape: Shape | None) -> str:
    """Problem of a LoRA pair on a vocabulary of another size; "" if there is none."""
    if shape is None or len(shape) != 2 or not is_vocabulary(module.name):
        return ""
    num_tokens, width = module.shape[::-1] if module.is_embedding else module.shape
    if num_tokens == shape[0] or width != shape[1]:
        return ""
    return f"{module.name} is for {num_tokens} tokens, the base has {shape[0]}"


def check_resized(problems: Sequence[str]) -> Iterator[LintFinding]:
    if problems:
        yield _unsupported(f"It was trained with added tokens: {examples(problems)}.", _REMEDY)


def check_tokenizer(folder: Path, base_folder: Path) -> Iterator[LintFinding]:
    """Warn of tokens in the folder's tokenizer that the base's lacks."""
    own = _added_tokens(_read_tokenizer(folder))
    base = _read_tokenizer(base_folder) if own else {}
    known = {*_added_tokens(base), *_vocabulary_of(base)}
    if known and (added := [token for token in own if token not in known]):
        yield LintFinding(
            "warning",
            "added-tokens",
            f"Its tokenizer has {len(added)} tokens that the base's lacks: {examples(list(map(repr, added)))}. The "
            "base's tokenizer splits them like ordinary text.",
            "Train without them, and do not use them in prompts.",
        )


def _vocabulary_layer(name: str) -> str:
    """Name of the vocabulary layer that a tensor belongs to; "" if it is not one."""
    parts = name.removeprefix("base_model.model.").split(".")
    for place, part in enumerate(parts):
        is_whole = parts[place + 1 :] in (["weight"], ["bias"], ["modules_to_save", "weight"])
        if part in _VOCABULARY and (is_whole or _TRAINABLE in name):
            return ".".join(parts[: place + 1])
    return ""


def _num_rows(header: TensorHeader) -> int:
    return header.shape[0] if len(header.shape) == 2 and _TRAINABLE not in header.name else 0


def _rows_of_base(module: str, base: Mapping[str, Shape | None]) -> int:
    shape = base.get(module)
    return shape[0] if shape and len(shape) == 2 else 0


def _read_tokenizer(folder: Path) -> dict[str, Any]:
    """Empty where there is none that can be read."""
    path = folder / _TOKENIZER_FILE
    try:
        is_read = path.is_file() and path.stat().st_size <= _MAX_TOKENIZER_BYTES
        content = load_json(path.read_bytes()) if is_read else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _added_tokens(tokenizer: dict[str, Any]) -> list[str]:
    added = tokenizer.get("added_tokens")
    found = [token.get("content") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return [token for token in found if isinstance(token, str)]


def _vocabulary_of(tokenizer: dict[str, Any]) -> list[str]:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return list(vocabulary) if isinstance(vocabulary, dict) else []


def _unsupported(message: str, fix: str) -> LintFinding:
    return LintFinding("error", "added-tokens", message, fix, is_unsupported=True)
