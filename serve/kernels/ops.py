"""What torch.compile must know of our operators, and the one for embeddings, in plain torch."""

from functools import cache

import torch
from torch import Tensor

from serve.kernels.grouped import expand, group_tokens


@cache
def register_for_compilation() -> None:
    """Call once `lora.cpp` is loaded: `add_lora` changes its first argument and returns nothing, on any shapes."""
    torch.library.register_fake("lorikeet::add_lora", lambda y, x, table, slots, widths: None)


@torch.library.custom_op("lorikeet::add_embedding_lora", mutates_args=("y",))
def add_embedding_lora(
    y: Tensor, token_ids: Tensor, lora_a: Tensor, lora_b: Tensor, is_used: Tensor, slots: Tensor
) -> None:
    """`y[t] += A[slots[t], token_ids[t]] @ B[slots[t]].T`, in place, for the slots that are used.

    Args:
        y: (T, N) output of the base's embedding; changed.
        token_ids: (T,).
        lora_a: (slots, vocabulary, R).
        lora_b: (slots, 1, N, R).
        is_used: (slots,) bool, whether the slot's adapter has an embedding part.
        slots: (at least T,) adapter slot of each token, -1 for the base model.
    """
    if not is_used.any():
        return
    groups = [group for group in group_tokens(slots[: len(token_ids)].tolist()) if is_used[group.slot]]
    for group in groups:
        hidden = torch.zeros(len(token_ids), lora_a.shape[-1], dtype=lora_a.dtype)
        hidden[group.rows] = lora_a[group.slot][token_ids[group.rows]]
        expand(y, hidden, (group,), lora_b)


@add_embedding_lora.register_fake
def _(y: Tensor, token_ids: Tensor, lora_a: Tensor, lora_b: Tensor, is_used: Tensor, slots: Tensor) -> None:
    pass
