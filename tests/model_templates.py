"""Chat templates of real model families, as TRL's package carries them, each with a small tokenizer of its own."""

import re
from functools import cache
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.jinja") if not file.stem.endswith("_training")))

_MARKER = re.compile(r"<[|｜/]?[A-Za-z_▁][^<>\s'\"{}()=]*>")
_EOS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<eos>",
    "gemma": "<eos>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|>",
    "llava": "</s>",
    "muse": "<|eot|>",
    "phi3": "<|endoftext|>",
    "smolvlm": "<end_of_utterance>",
}
"""The `eos_token` of the models that ship these templates, by the beginning of the name; of all others `<|im_end|>`."""


def eos_of(name: str) -> str:
    return next((eos for family, eos in _EOS.items() if name.startswith(family)), "<|im_end|>")


def source_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def _bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """One token a byte, and the template's markers as special tokens."""
    source = source_of(name)
    tokenizer = Tokenizer.from_str(_bytes().to_str())
    tokenizer.add_special_tokens(sorted({*_MARKER.findall(source), eos_of(name), "<bos>"}))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token=eos_of(name), chat_template=source
    )
