"""The layers of a base that a method changes, by short names (`q_proj`)."""

import re
from collections.abc import Mapping, Sequence

import torch

from train.errors import RecipeError

VOCABULARY = ("lm_head", "embed_tokens", "embed_out", "wte")
"""Layers with one row per token; `all-linear` leaves them out."""


def resolve_target_modules(
    model: torch.nn.Module, wanted: str | Sequence[str], *, with_embeddings: bool = False
) -> list[str]:
    """Sorted short names; `all-linear` means every linear layer except the output layer.

    Raises:
        RecipeError: A name that is not the end of any such layer's name.
    """
    linear = _names(model, torch.nn.Linear) - set(VOCABULARY)
    if wanted == "all-linear":
        return sorted(linear)
    known = linear | (_names(model, torch.nn.Embedding) if with_embeddings else set())
    names = set(named(wanted))
    if unknown := sorted(names - known):
        raise RecipeError(
            f"target_modules has {unknown!r}, but the base's linear layers are {sorted(linear)!r}. "
            "Name those, or write `all-linear`."
        )
    return sorted(names)


def check_patterns(
    model: torch.nn.Module, targets: Sequence[str], patterns: Mapping[str, Mapping[str, object]]
) -> None:
    """Refuse a pattern of `rank_pattern` or `alpha_pattern` that no adapted layer's name ends with: PEFT ignores it.

    Raises:
        RecipeError: With the layers that are adapted.
    """
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in targets]
    for key, by_pattern in patterns.items():
        for pattern in by_pattern:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise RecipeError(f"{key} has {pattern!r}, which no adapted layer's name ends with: {targets!r}.")


def _names(model: torch.nn.Module, kind: type[torch.nn.Module]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, kind)}


def named(target_modules: str | Sequence[str]) -> tuple[str, ...]:
    return (target_modules,) if isinstance(target_modules, str) else tuple(target_modules)
