"""Batched generation with the model's forward: shared prefix computed once, no padding, finished rows dropped.

1. The common prefix of all prompts is computed once; its keys and values are copied.
2. Prompts of the same length run as one batch, so there is no padding; equal prompts run once.
3. The batches' keys and values, aligned on the right, become one batch, which takes one token a row and step.
4. A row leaves the batch with its last token.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from train.attention import grouped_attention_of
from train.methods.method import Trainable, base_of
from train.methods.virtual_tokens import virtual_cache, virtual_tokens_off


@dataclass
class Continuation:
    """The generated tokens of one prompt, with log-probabilities (nats) of the unmodified distribution."""

    row: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


# (N, V) logits in float32 and the N rows that they continue -> N token ids.
ChooseTokens = Callable[[torch.Tensor, Sequence[Continuation]], torch.Tensor]
IsFinished = Callable[[list[int]], bool]


@dataclass
class GenerationBatch:
    """Rows that are decoded together: `attention_mask` (N, T), `logits` (N, V) of each row's next token."""

    rows: list[Continuation]
    cache: Any
    attention_mask: torch.Tensor
    logits: torch.Tensor

    def append(self, token_ids: torch.Tensor) -> None:
        """Append the chosen tokens, (N,)."""
        logprobs = self.logits.gather(-1, token_ids[:, None]).squeeze(-1) - self.logits.logsumexp(-1)
        for row, token_id, logprob in zip(self.rows, token_ids.tolist(), logprobs.tolist(), strict=True):
            row.token_ids.append(token_id)
            row.logprobs.append(logprob)

    def keep(self, positions: Sequence[int]) -> None:
        """Keep only these rows."""
        if len(positions) == len(self.rows):
            return
        self.rows = [self.rows[position] for position in positions]
        self._select(positions)

    def copy(self, positions: Sequence[int]) -> None:
        """Give each row the state at its position: one state for all rows with the same prompt."""
        if len(positions) > len(self.attention_mask):
            self.logits = self.logits[positions]
            self._select(positions)

    def _select(self, positions: Sequence[int]) -> None:
        self.attention_mask = self.attention_mask[positions]
        self.cache.batch_select_indices(torch.tensor(positions, dtype=torch.long, device=self.attention_mask.device))


def most_likely(logits: torch.Tensor, rows: Sequence[Continuation]) -> torch.Tensor:
    return logits.argmax(-1)


@torch.inference_mode()
def continue_prompts(
    model: Trainable,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    is_finished: IsFinished,
    choose: ChooseTokens = most_likely,
) -> list[Continuation]:
    """Decode all prompts as one batch, each until `is_finished` or `max_new_tokens`."""
    rows = [Continuation(row) for row in range(len(prompts))]
    with _contiguous_head_input(model), _fast_attention(model):
        for batch in _merge(_prefill(model, prompts, rows)):
            _decode(model, batch, max_new_tokens, is_finished, choose)
    return rows


def _prefill(
    model: Trainable, prompts: Sequence[tuple[int, ...]], rows: Sequence[Continuation]
) -> list[GenerationBatch]:
    """One batch per prompt length, shortest first."""
    virtual = virtual_cache(model)
    num_virtual = 0 if virtual is None else virtual.get_seq_length()
    model = base_of(model) if virtual is not None else model
    prefix = _shared_prefix(model, prompts, virtual)
    by_length = sorted(rows, key=lambda row: len(prompts[row.row]))
    batches = []
    for _, group in groupby(by_length, key=lambda row: len(prompts[row.row])):
        same_length = list(group)
        own = {prompt: n for n, prompt in enumerate(dict.fromkeys(prompts[row.row] for row in same_length))}
        input_ids = torch.tensor(list(own), device=model.device)
        cache = copy.deepcopy(prefix)
        num_shared = 0
        if cache is not None:
            num_shared = cache.get_seq_length() - num_virtual
            cache.batch_repeat_interleave(len(own))
        output = model(input_ids=input_ids[:, num_shared:], past_key_values=cache, use_cache=True, logits_to_keep=1)
        mask = torch.ones_like(input_ids[:, :1]).expand(-1, num_virtual + input_ids.shape[1])
        batch = GenerationBatch(same_length, output.past_key_values, mask, output.logits[:, -1].float())
        batch.copy([own[prompts[row.row]] for row in same_length])
        batches.append(batch)
    return batches


def _shared_prefix(
    model: Trainable, prompts: Sequence[tuple[int, ...]], virtual: DynamicCache | None
) -> DynamicCache | None:
    """KV cache of virtual tokens and common prefix; None if both are empty, or the model's cache is of another kind."""
    num_shared = 0
    for column in zip(*prompts, strict=False):
        if len(set(column)) > 1:
            break
        num_shared += 1
    num_shared = min(num_shared, min(map(len, prompts)) - 1)  # each prompt runs at least its last token
    if num_shared == 0 or len(prompts) == 1:
        return virtual
    input_ids = torch.tensor([prompts[0][:num_shared]], device=model.device)
    start = copy.deepcopy(virtual)
    cache = model(input_ids=input_ids, past_key_values=start, use_cache=True, logits_to_keep=1).past_key_values
    return cache if _is_plain(cache) else virtual


def _is_plain(cache: Any) -> bool:
    """Whether the cache holds only attention keys and values, in token order."""
    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def _merge(batches: list[GenerationBatch]) -> list[GenerationBatch]:
    """Merge batches into one, left-padding shorter prompts; unchanged if the model has no plain cache."""
    longest = batches[-1]
    if len(batches) == 1 or not all(_is_plain(batch.cache) for batch in batches):
        return batches
    # The longest prompts' layers know how many tokens they have seen: so many, with the padding, all rows have now.
    for index, layer in enumerate(longest.cache.layers):
        layers = [batch.cache.layers[index] for batch in batches]
        keys = _align_right([layer.keys for layer in layers], dim=-2)
        values = _align_right([layer.values for layer in layers], dim=-2)
        for merged in layers:
            merged.keys = merged.values = None  # no more than one layer is in memory twice
        layer.keys, layer.values = keys, values
    rows = [row for batch in batches for row in batch.rows]
    mask = _align_right([batch.attention_mask for batch in batches], dim=-1)
    return [GenerationBatch(rows, longest.cache, mask, torch.cat([batch.logits for batch in batches]))]


def _align_right(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Concatenate along the first dimension, left-padding with zeros along `dim`."""
    size = max(tensor.shape[dim] for tensor in tensors)
    unpadded = (0, 0) * (-dim - 1)
    padded = [torch.nn.functional.pad(t, (*unpadded, size - t.shape[dim], 0)) for t in tensors]
    return torch.cat(padded)


def _decode(
    model: Trainable, batch: GenerationBatch, max_new_tokens: int, is_finished: IsFinished, choose: ChooseTokens
) -> None:
    for step in range(max_new_tokens):
        if step > 0:
            _step(model, batch)
        batch.append(choose(batch.logits, batch.rows))
        batch.keep([position for position, row in enumerate(batch.rows) if not is_finished(row.token_ids)])
        if not batch.rows:
            return


def _step(model: Trainable, batch: GenerationBatch) -> None:
    """Run each row's newest token through the model."""
    newest = torch.tensor([[row.token_ids[-1]] for row in batch.rows], device=model.device)
    batch.attention_mask = torch.cat([batch.attention_mask, torch.ones_like(newest)], dim=1)
    run = model if virtual_tokens_off(model) else base_of(model)  # their keys and values are in the cache
    output = run(
        input_ids=newest,
        attention_mask=batch.attention_mask,
        position_ids=batch.attention_mask.sum(1, keepdim=True) - 1,
        past_key_values=batch.cache,
        use_cache=True,
    )
    batch.logits = output.logits[:, -1].float()


def _fast_attention(model: Trainable) -> AbstractContextManager[None]:
    return nullcontext() if torch.cuda.is_available() else grouped_attention_of(base_of(model))


@contextmanager
def _contiguous_head_input(model: Trainable) -> Iterator[None]:
    """Give the output layer a contiguous input.

    The last position of a batch of prompts is a strided slice, for which the CPU matmul copies the whole output layer
    once per row: 20 s a batch instead of 20 ms.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: (inputs[0].contiguous(), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()
