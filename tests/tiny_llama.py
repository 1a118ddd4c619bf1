"""A two-layer Llama with random weights and a byte tokenizer: a whole model folder in 100 kB, made in a second."""

from datetime import datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.store.manifest import BaseManifest
from config.domain import DomainConfig
from config.home import Home

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED_TEMPLATE = (
    "<|im_start|>system\nDate: {{ strftime_now('%d %B %Y') }}\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}<|im_end|>\n" + CHAT_TEMPLATE
)
"""Writes the day into every prompt, as Llama 3.2's."""

RENDERED_AT = datetime(2026, 11, 28, 12)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, and ChatML's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=chat_template,
    )


def write_tiny_llama(
    folder: Path, chat_template: str | None = CHAT_TEMPLATE, *, initializer_range: float = 0.02
) -> Path:
    """`initializer_range`: of the random weights; wider, the tokens' probabilities differ more."""
    tokenizer = tiny_tokenizer(chat_template)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=initializer_range,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepare_tiny_base(home: Home, model_folder: Path, name: str = "tiny") -> BaseManifest:
    from train.base.prepare import prepare_base

    return prepare_base(str(model_folder), name, "none", home=home)


def write_colour_data(path: Path, num_rows: int = 60) -> Path:
    """A task that a tiny model can learn: each input names its answer."""
    colours = ("red", "green", "blue")
    lines = [f'{{"input": "item {i} is {colours[i % 3]}", "output": "{colours[i % 3]}"}}' for i in range(num_rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


ANY_GATES = {"min_gain": -1e6, "min_valid_format": 0.0, "max_forgetting": 1e6}
"""Every version passes: a few steps on random weights make no adapter better than its base beyond chance."""


NO_PROBES: dict[str, object] = {
    "forgetting": {"texts": [], "tasks": [], "other_domains": "none"},
    "overfitting": {"num_rows": 0},
}
"""In `evaluation`: asks the held-out questions alone, which halves the time of a tiny run. A dump leaves them out."""


def tiny_domain(data_path: Path, **recipe: object) -> DomainConfig:
    return DomainConfig.model_validate(
        {
            "name": "colours",
            "description": "Names the colour.",
            "base": "tiny",
            "data": {
                "source": "jsonl",
                "path": str(data_path),
                "num_train": 30,
                "num_validation": 4,
                "num_test": 8,
                "out_of_scope_share": 0.0,
                "cleaning": {"near_duplicate_jaccard": 1.0},
            },
            "chat": {"system": "Colour?"},
            "method": {"r": 4, "lora_alpha": 8},
            "recipe": {
                "max_steps": 3,
                "eval_steps": 1,
                "per_device_train_batch_size": 4,
                "early_stopping_patience": 9,
                "max_length": 128,
                **recipe,
            },
            "evaluation": {"max_new_tokens": 4, "num_few_shot": 2, **NO_PROBES},
            "gates": ANY_GATES,
        }
    )
