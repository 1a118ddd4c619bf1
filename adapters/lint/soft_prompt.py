"""Lint of soft prompts: PEFT folders of prompt tuning and P-tuning, which hold embeddings of virtual tokens."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapters.lint.base_modules import Shape
from adapters.lint.config import LintFinding, is_soft_prompt
from adapters.lint.peft_folder import CONFIG_FILE, PROMPT_TENSOR, WEIGHTS_FILE
from adapters.lint.tensors import FLOAT_DTYPES, TensorHeader, find_larger
from adapters.lint.values import OVERFLOWS_AT, SERVED_TYPE
from adapters.lint.vocabulary import is_vocabulary
from adapters.lint.words import broken, examples


def check_soft_prompt(
    path: Path, config: Mapping[str, Any], headers: Mapping[str, TensorHeader], base: Mapping[str, Shape | None]
) -> Iterator[LintFinding]:
    """Findings on the tensors of a soft prompt.

    Args:
        path: The weights file.
        config: PEFT's configuration, of a type that is served.
        base: Shapes of the base's layers; empty if the base is unknown.
    """
    assert is_soft_prompt(config)
    header = headers.get(PROMPT_TENSOR)
    if header is None:
        yield LintFinding(
            "error",
            "empty",
            f"{WEIGHTS_FILE} has no tensor {PROMPT_TENSOR!r}, only {examples(sorted(headers))}.",
            "Save the adapter with PEFT's save_pretrained, which runs the prompt encoder of P-tuning once.",
        )
        return
    if others := sorted(set(headers) - {PROMPT_TENSOR}):
        yield LintFinding(
            "error",
            "not-lora",
            f"{len(others)} tensors are not virtual tokens: {examples(others)}.",
            "Only virtual tokens are served; train without modules_to_save.",
            is_unsupported=True,
        )
    yield from _check_shape(header, config, _hidden_size(base))
    if header.dtype not in FLOAT_DTYPES:
        yield broken("dtype", f"{PROMPT_TENSOR} is {header.dtype}, not F32, F16 or BF16", [PROMPT_TENSOR])
    elif find_larger(path, [(header, OVERFLOWS_AT)]):
        yield broken(
            "not-finite", f"{PROMPT_TENSOR} holds NaN, infinity or what overflows {SERVED_TYPE}", [header.name]
        )


def _check_shape(header: TensorHeader, config: Mapping[str, Any], hidden_size: int | None) -> Iterator[LintFinding]:
    wanted = config.get("num_virtual_tokens")
    if len(header.shape) != 2 or header.shape[0] != wanted:
        yield LintFinding(
            "error",
            "prompt-shape",
            f"{PROMPT_TENSOR} has the shape {header.shape}; {CONFIG_FILE} says {wanted!r} virtual tokens.",
            "Save the adapter with PEFT again.",
        )
    elif hidden_size is not None and header.shape[1] != hidden_size:
        yield LintFinding(
            "error",
            "base-shape",
            f"{PROMPT_TENSOR} is for a hidden size of {header.shape[1]}, the base has {hidden_size}.",
            "Give the base that the adapter was trained on.",
        )


def _hidden_size(base: Mapping[str, Shape | None]) -> int | None:
    shapes = [shape for module, shape in base.items() if shape and len(shape) == 2 and is_vocabulary(module)]
    return shapes[0][1] if shapes else None
