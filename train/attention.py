"""Attention for training and evaluation on a CPU: batched matrix products over the query heads of each key head.

torch's flash attention takes four to eight times as long in bfloat16 on a CPU, most of it in its backward pass.
Probabilities are recomputed in the backward pass, so a layer's memory is linear in the number of tokens. Scores, which
are quadratic, are held for a few rows at a time (at least one).

Rows with a common prefix can also be packed into one row: the shared tokens once, then the rest of each row. The packed
row passes through every layer as one sequence; only attention separates the original rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "lorikeet_training"

_MAX_SCORES = 1 << 20
"""Computed together, so that they fit into a core's cache."""
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")


@dataclass(frozen=True)
class Packed:
    """Layout of a packed row: `num_shared` tokens, then the remainders of `num_rows` rows, all of one length."""

    num_shared: int
    num_rows: int


@dataclass(frozen=True)
class PackedTree:
    """Layout of a packed row: `num_shared` tokens, the remainders of prompts, then the answers to them.

    Attributes:
        prompt_lengths: Tokens of each remainder; all are padded on the right to the longest.
        prompt_of: For each answer, all of one length, its prompt.
    """

    num_shared: int
    prompt_lengths: tuple[int, ...]
    prompt_of: tuple[int, ...]

    @property
    def prompts(self) -> Packed:
        """The layout without the answers."""
        return Packed(self.num_shared, len(self.prompt_lengths))

    @property
    def num_before_answers(self) -> int:
        return self.num_shared + len(self.prompt_lengths) * max(self.prompt_lengths)


_PACKED: ContextVar[Packed | PackedTree | None] = ContextVar("packed", default=None)


@contextmanager
def grouped_attention_of(model: PreTrainedModel) -> Iterator[None]:
    """Use this attention for a model that is set to `sdpa`, until the block ends; other models are unchanged."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, _mask_of_model)
    before = model.config._attn_implementation
    if before == "sdpa":
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def packed_rows(packed: Packed | PackedTree) -> Iterator[None]:
    """Treat the model's input as a packed row of this layout; requires `can_pack`."""
    token = _PACKED.set(packed)
    try:
        yield
    finally:
        _PACKED.reset(token)


def can_pack(model: PreTrainedModel, num_tokens: int) -> bool:
    """Whether a model uses this attention with a plain causal mask."""
    config = model.config
    has_window = 0 < (getattr(config, "sliding_window", None) or 0) < num_tokens
    has_cap = getattr(config, "attn_logit_softcapping", None) is not None
    has_dropout = (getattr(config, "attention_dropout", None) or 0) > 0
    return config._attn_implementation == NAME and not (has_window or has_cap or has_dropout)


def _mask_of_model(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The mask that transformers creates once for all layers; None for packed rows, which have no left padding."""
    return None if _PACKED.get() is not None else sdpa_mask(*args, **kwargs)


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; calls that need more than a mask are passed to `sdpa`.

    Args:
        query: (B, H, T, D).
        key: (B, K, S, D) with fewer heads; `value` likewise.
        attention_mask: (B or 1, 1, T, S), True where a query sees a key, or a float mask that is added to the scores.
    """
    packed = _PACKED.get()
    is_special = dropout > 0 or any(kwargs.get(name) is not None for name in _UNSUPPORTED)
    if packed is None and is_special:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return output, None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    query = query.to(dtype) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    key, value = key.to(dtype), value.to(dtype)
    if isinstance(packed, PackedTree):
        return _attend_tree(query, key, value, packed), None
    if packed is not None:
        return _attend_packed(query, key, value, packed), None
    if attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        attention_mask = _causal(query.shape[2], key.shape[2])
    return _attend(query, key, value, _additive(attention_mask, dtype)).transpose(1, 2).contiguous(), None


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    output: torch.Tensor = GroupedAttention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
    return output


def _attend_packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed) -> torch.Tensor:
    """(1, T, H, D): shared tokens attend to each other, other tokens to the shared ones and to their own row."""
    num_shared = packed.num_shared

    def rows_of(packed_states: torch.Tensor) -> torch.Tensor:
        heads, _, width = packed_states[0].shape
        return packed_states[0, :, num_shared:].reshape(heads, packed.num_rows, -1, width).transpose(0, 1)

    def with_shared(packed_states: torch.Tensor) -> torch.Tensor:
        shared = packed_states[:, :, :num_shared].expand(packed.num_rows, -1, -1, -1)
        return torch.cat([shared, rows_of(packed_states)], 2)

    rows, keys = rows_of(query), with_shared(key)
    mask = _additive(_causal(rows.shape[2], keys.shape[2]), query.dtype)
    rest = _attend(rows, keys, with_shared(value), mask).transpose(1, 2).flatten(0, 1)[None]
    if not num_shared:
        return rest
    first_query, first_key, first_value = (states[:, :, :num_shared] for states in (query, key, value))
    mask = _additive(_causal(num_shared, num_shared), query.dtype)
    shared = _attend(first_query, first_key, first_value, mask)
    return torch.cat([shared.transpose(1, 2), rest], 1)


def _attend_tree(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: PackedTree) -> torch.Tensor:
    """(1, T, H, D): as `_attend_packed`; an answer's tokens attend to its prompt, too."""
    num_shared, num_before = tree.num_shared, tree.num_before_answers
    num_prompts, num_answers = len(tree.prompt_lengths), len(tree.prompt_of)
    first_query, first_key, first_value = (states[:, :, :num_before] for states in (query, key, value))
    before = _attend_packed(first_query, first_key, first_value, tree.prompts)
    if not num_answers:
        return before

    def rows_of(states: torch.Tensor, num_rows: int) -> torch.Tensor:
        heads, _, width = states[0].shape
        return states[0].reshape(heads, num_rows, -1, width).transpose(0, 1)

    def with_prompts(states: torch.Tensor) -> torch.Tensor:
        shared = states[:, :, :num_shared].expand(num_answers, -1, -1, -1)
        prompts = rows_of(states[:, :, num_shared:num_before], num_prompts)[list(tree.prompt_of)]
        return torch.cat([shared, prompts, rows_of(states[:, :, num_before:], num_answers)], 2)

    answers, keys = rows_of(query[:, :, num_before:], num_answers), with_prompts(key)
    mask = _causal(answers.shape[2], keys.shape[2]).repeat(num_answers, 1, 1, 1)
    for row, prompt in enumerate(tree.prompt_of):
        mask[row, :, :, num_shared + tree.prompt_lengths[prompt] : num_shared + max(tree.prompt_lengths)] = False
    attended = _attend(answers, keys, with_prompts(value), _additive(mask, query.dtype))
    return torch.cat([before, attended.transpose(1, 2).flatten(0, 1)[None]], 1)


def _causal(num_queries: int, num_keys: int) -> torch.Tensor:
    """Causal mask (1, 1, T, S) of queries that are the last T of S tokens."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)[None, None]


class GroupedAttention(torch.autograd.Function):
    """softmax(query key^T + mask) value; `query` is already scaled."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        output = query.new_empty(*query.shape[:3], value.shape[-1])
        for rows in _row_slices(query, key):
            probabilities = _probabilities(query[rows], key[rows], _mask_of(mask, rows))
            output[rows] = (probabilities @ value[rows]).view_as(output[rows])
        ctx.save_for_backward(query, key, value, mask)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        d_query, d_key, d_value = map(torch.empty_like, (query, key, value))
        for rows in _row_slices(query, key):
            grouped = _grouped(query[rows], key)
            d_output = _grouped(gradients[0][rows], key)
            probabilities = _probabilities(query[rows], key[rows], _mask_of(mask, rows))
            d_value[rows] = probabilities.transpose(-1, -2) @ d_output
            d_probabilities = d_output @ value[rows].transpose(-1, -2)
            d_scores = torch._softmax_backward_data(d_probabilities, probabilities, -1, probabilities.dtype)
            d_query[rows] = (d_scores @ key[rows]).view_as(query[rows])
            d_key[rows] = d_scores.transpose(-1, -2) @ grouped
        return d_query, d_key, d_value, None


def _probabilities(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, K, H/K * T, S)."""
    scores = _grouped(query, key) @ key.transpose(-1, -2)
    if mask is not None:
        batch, heads, _, length = scores.shape
        scores.view(batch, heads, -1, query.shape[2], length).add_(mask[:, :, None])
    return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


def _grouped(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(B, K, H/K * T, D): the query heads of each key head, concatenated."""
    return query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])


def _row_slices(query: torch.Tensor, key: torch.Tensor) -> Iterator[slice]:
    num_scores = query.shape[1] * query.shape[2] * key.shape[2]
    num_rows = max(1, _MAX_SCORES // num_scores)
    return (slice(start, start + num_rows) for start in range(0, query.shape[0], num_rows))


def _mask_of(mask: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return mask if mask is None or mask.shape[0] == 1 else mask[rows]


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask if mask is None else mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
