"""A byte-level BPE tokenizer as GGUF's vocabulary; what llama.cpp would split in another way is refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from train.errors import ExportError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's name of each way to split text, by the steps of a tokenizer.json.
_SPLITS: dict[tuple[str, ...], str] = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_CONTRACTIONS + r"\p{N}{1,3}" + _SPACES, "bytes"): "llama-bpe",
    (_CONTRACTIONS + r"\p{N}" + _SPACES, "bytes"): "qwen2",
}
_IGNORES_MERGES = ("llama-bpe",)  # llama.cpp looks a whole word up first under this name only


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id with GGUF's token types, and how llama.cpp splits text into them."""

    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    special_ids: Mapping[str, int]
    """Of `bos`, `eos`, `unk` and `pad`, those that exist."""
    adds_bos: bool
    adds_eos: bool


def read_vocabulary(folder: Path, num_tokens: int) -> Vocabulary:
    """The vocabulary of a model folder.

    Args:
        num_tokens: Rows of the embedding; ids without a token become unused ones.

    Raises:
        ExportError: The tokenizer is not byte-level BPE, or splits text in a way that llama.cpp has no name for.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _refused("has no tokenizer.json")
    content: dict[str, Any] = json.loads(path.read_bytes())
    model, added = content["model"], content.get("added_tokens") or []
    _check_model(model)
    _check_added(added)
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    tokens, types = _tokens(model["vocab"], added, num_tokens)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    adds_bos, adds_eos = _adds(tokenizer)
    return Vocabulary(
        pre=_pre(content),
        tokens=tokens,
        types=types,
        merges=merges,
        special_ids=_special_ids(tokenizer),
        adds_bos=adds_bos,
        adds_eos=adds_eos,
    )


def _check_model(model: Mapping[str, Any]) -> None:
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise _refused(f"is {model.get('type')}{' with byte fallback' if model.get('byte_fallback') else ''}")
    if not model.get("merges"):
        raise _refused("has no merges, without which llama.cpp loads no BPE")
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if used := [option for option in options if model.get(option)]:
        raise _refused(f"sets {used[0]} to {model[used[0]]!r}")


def _check_added(added: Sequence[Mapping[str, Any]]) -> None:
    for token in added:
        if used := [option for option in ("lstrip", "rstrip", "single_word") if token.get(option)]:
            raise _refused(f"has the token {token['content']!r} with {used[0]}")


def _pre(content: Mapping[str, Any]) -> str:
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers") or [steps]
    found = tuple(map(_step, steps))
    pre = _SPLITS.get(found)
    normalizer = (content.get("normalizer") or {}).get("type")
    if pre is None:
        raise _refused(f"splits text by {[step.get('type') for step in steps]} in a way that llama.cpp has no name for")
    if normalizer is not None and (normalizer, pre) != ("NFC", "qwen2"):
        raise _refused(f"normalizes text ({normalizer})")
    ignores_merges = bool(content["model"].get("ignore_merges"))
    if ignores_merges != (pre in _IGNORES_MERGES):
        raise _refused(f"has ignore_merges {ignores_merges}, unlike llama.cpp's {pre!r}")
    return pre


def _step(step: Mapping[str, Any]) -> str:
    """One step of a pre-tokenizer as `_SPLITS` names it."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "words" if step.get("use_regex", True) else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if not step.get("invert"):
            return pattern
    return ""


def _tokens(
    vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]], num_tokens: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    found = {index: (token, TokenType.NORMAL) for token, index in vocab.items()}
    for token in added:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        found[token["id"]] = (token["content"], kind)
    if found and max(found) >= num_tokens:
        raise _refused(f"has the id {max(found)}, the base {num_tokens} embeddings")
    rows = [found.get(index, (f"[PAD{index}]", TokenType.UNUSED)) for index in range(num_tokens)]
    return tuple(token for token, _ in rows), tuple(kind for _, kind in rows)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    return {name: index for name, index in ids.items() if index is not None}


def _adds(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether BOS is put before a text and EOS after it."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for adds_bos in (False, True):
        for adds_eos in (False, True):
            before, after = [tokenizer.bos_token_id] * adds_bos, [tokenizer.eos_token_id] * adds_eos
            if whole == [*before, *plain, *after]:
                return adds_bos, adds_eos
    raise _refused(f"turns 'a' into {whole}, which is neither BOS nor EOS around {plain}")


def _refused(problem: str) -> ExportError:
    return ExportError(
        f"The base's tokenizer {problem}; only byte-level BPE as of GPT-2, SmolLM2, Llama 3 and Qwen 2 is converted to "
        "GGUF. Use `lorikeet export merge` and llama.cpp's own converter."
    )
