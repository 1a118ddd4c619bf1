"""What torch.compile must know of our operators, and those for embeddings, in plain torch."""

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


@torch.library.custom_op("lorikeet::put_virtual_tokens", mutates_args=("y",), device_types="cpu")
def put_virtual_tokens(y: Tensor, positions: Tensor, slots: Tensor, embeddings: Tensor, counts: Tensor) -> None:
    """`y[t] = embeddings[slots[t], positions[t]]`, in place, where `positions[t] < counts[slots[t]]`.

    Args:
        y: (T, N) output of the base's embedding; changed.
        positions: (at least T,) place of each token in its sequence.
        slots: (at least T,) adapter slot of each token, -1 for the base model.
        embeddings: (slots, most, N) virtual tokens of each slot's soft prompt.
        counts: (slots,) how many of them there are; 0 where the slot's adapter is none.
    """
    if not counts.any():
        return
    is_virtual, slot = _virtual(len(y), positions, slots, counts)
    rows = is_virtual.nonzero().squeeze(1)
    if len(rows):
        y[rows] = embeddings[slot[rows], positions[rows]]


@put_virtual_tokens.register_kernel("cuda")
def _(y: Tensor, positions: Tensor, slots: Tensor, embeddings: Tensor, counts: Tensor) -> None:
    """Of the same shapes whatever the batch holds, and without waiting for the GPU: a CUDA graph replays it."""
    is_virtual, slot = _virtual(len(y), positions, slots, counts)
    found = embeddings[slot, positions[: len(y)].clamp(max=embeddings.shape[1] - 1)]
    y.copy_(torch.where(is_virtual.unsqueeze(1), found, y))


@put_virtual_tokens.register_fake
def _(y: Tensor, positions: Tensor, slots: Tensor, embeddings: Tensor, counts: Tensor) -> None:
    pass


def _virtual(num_tokens: int, positions: Tensor, slots: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token whether it is virtual, and its slot; any slot for what has none."""
    given = slots[:num_tokens]
    slot = given.clamp(0, len(counts) - 1)  # those of a padded batch's end may be anything
    return (given == slot) & (positions[:num_tokens] < counts[slot]), slot
