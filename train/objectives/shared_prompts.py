"""Log-probabilities of answers with what rows share computed once, for TRL's preference trainers on a CPU.

The two answers of a pair have one prompt, and the prompts of a batch often begin alike. They run through the model in
one long row (`train.attention.PackedTree`), and the output layer sees the positions with loss alone: on a CPU, TRL
projects every position onto the vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from train.attention import PackedTree, can_pack, packed_rows
from train.data.encode import IGNORED
from train.objectives.answer_loss import hidden_states_selected

LogprobPath = Literal["shared prompts", "answer positions"]
_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
_MOST_NATS = {True: 0.05, False: 1e-3}
"""Mean distance from TRL's own log-probabilities that rounding explains, in bf16 and in float32."""

logger = logging.getLogger(__name__)

Groups = Sequence[Sequence[int]]
"""Rows that have one prompt."""


@dataclass(frozen=True)
class PaddedRows:
    """Rows padded on the right: `input_ids`, `attention_mask` and `labels`, (B, T) each; `groups` covers all rows."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    groups: Groups

    @property
    def has_loss(self) -> torch.Tensor:
        """(B, T - 1): whether a position predicts a token with loss."""
        return self.labels[:, 1:] != IGNORED

    def first_groups(self) -> "PaddedRows":
        """Two, even if all have one length: a single one cannot reveal leaks between prompts."""
        groups = self.groups[:2]
        rows = [row for group in groups for row in group]
        numbered = [[rows.index(row) for row in group] for group in groups]
        return PaddedRows(self.input_ids[rows], self.attention_mask[rows], self.labels[rows], numbered)


@dataclass(frozen=True)
class SharedRow:
    """Rows packed into one.

    Attributes:
        input_ids, position_ids: (1, N).
        places: (B, T) where each token of the rows is in the packed one; -1 for padding and last tokens.
    """

    tree: PackedTree
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    places: torch.Tensor


def shared_row(rows: PaddedRows) -> SharedRow:
    """Pack rows: what all begin with, what each group begins with, and the rest of each row.

    A row's last token predicts nothing, and is left out.
    """
    lengths = (rows.attention_mask.sum(1) - 1).tolist()
    ends = [_common(rows.input_ids[list(group)], min(lengths[row] for row in group)) for group in rows.groups]
    num_shared = min(_common(rows.input_ids, min(lengths)), min(ends) - 1)
    answered = [(g, row) for g, group in enumerate(rows.groups) if len(group) > 1 for row in group]
    prompt_size = max(ends) - num_shared
    answer_size = max((lengths[row] - ends[g] for g, row in answered), default=0)
    ids = [*rows.input_ids[0, :num_shared].tolist()]
    positions = [*range(num_shared)]
    places = torch.full_like(rows.input_ids, -1)
    places[:, :num_shared] = torch.arange(num_shared)

    def add(row: int, start: int, end: int, size: int) -> int:
        """Append a row's tokens, padded; returns where they begin."""
        at = len(ids)
        ids.extend(rows.input_ids[row, start:end].tolist() + [0] * (size - end + start))
        positions.extend(range(start, start + size))
        return at

    for group, end in zip(rows.groups, ends, strict=True):
        at = add(group[0], num_shared, end, prompt_size)
        places[list(group), num_shared:end] = torch.arange(at, at + end - num_shared)
    for g, row in answered if answer_size else []:
        at = add(row, ends[g], lengths[row], answer_size)
        places[row, ends[g] : lengths[row]] = torch.arange(at, at + lengths[row] - ends[g])
    tree = PackedTree(
        num_shared, tuple(end - num_shared for end in ends), tuple(g for g, _ in answered) if answer_size else ()
    )
    return SharedRow(tree, torch.tensor([ids]), torch.tensor([positions]), places)


def _common(input_ids: torch.Tensor, most: int) -> int:
    """How many tokens all rows begin with, up to `most`."""
    is_same = (input_ids == input_ids[:1]).all(0)[:most]
    return int(is_same.long().cumprod(0).sum())


class SharedPrompts:
    """Computes TRL's per-token outputs by the fastest path that equals TRL's own.

    A path is compared with TRL's log-probabilities on the rows of two prompts, and again for every batch longer than
    all before.
    """

    def __init__(self, *, can_share: bool) -> None:
        self._equal_up_to: dict[LogprobPath, int] = {"answer positions": 0}
        if can_share:
            self._equal_up_to = {"shared prompts": 0, "answer positions": 0}

    @contextmanager
    def in_forward(self, causal_lm: PreTrainedModel, groups: Groups) -> Iterator[None]:
        """Calls of the model with `fused_lm_head` compute so until the block ends."""
        own: Callable[..., Any] = causal_lm.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            rows = _rows_of(args, kwargs, groups)
            path = None if rows is None else self._choose(causal_lm, own, rows)
            if rows is None or path is None:
                return own(*args, **kwargs)
            return per_token(causal_lm, own, rows, path)

        causal_lm.forward = forward
        try:
            yield
        finally:
            causal_lm.forward = own

    def _choose(self, causal_lm: PreTrainedModel, own: Callable[..., Any], rows: PaddedRows) -> LogprobPath | None:
        num_tokens = rows.input_ids.shape[1]
        for path, equal_up_to in tuple(self._equal_up_to.items()):
            if path == "shared prompts" and not can_pack(causal_lm, num_tokens):
                continue
            if num_tokens <= equal_up_to:
                return path
            if _equals_own(causal_lm, own, rows, path):
                self._equal_up_to[path] = num_tokens
                return path
            del self._equal_up_to[path]
        return None


def per_token(causal_lm: PreTrainedModel, own: Callable[..., Any], rows: PaddedRows, path: LogprobPath) -> Any:
    """TRL's output for each position of the rows, (B, T - 1); zero at positions without loss."""
    has_loss = rows.has_loss
    labels = rows.labels[:, 1:][has_loss][None]
    if path == "shared prompts":
        row = shared_row(rows)
        places = row.places[:, :-1][has_loss]
        with packed_rows(row.tree), hidden_states_selected(causal_lm, lambda hidden: hidden[:, places]):
            output = own(
                input_ids=row.input_ids, position_ids=row.position_ids, shift_labels=labels, fused_lm_head=True
            )
    else:
        with hidden_states_selected(causal_lm, lambda hidden: hidden[:, :-1][has_loss][None]):
            output = own(
                input_ids=rows.input_ids,
                attention_mask=rows.attention_mask,
                shift_labels=labels,
                fused_lm_head=True,
            )
    found = {name: value for name in _PER_TOKEN if (value := getattr(output, name)) is not None}
    each = {name: value.new_zeros(has_loss.shape).masked_scatter(has_loss, value[0]) for name, value in found.items()}
    return replace(output, **each, label_mask=has_loss)


def _rows_of(args: tuple[Any, ...], kwargs: dict[str, Any], groups: Groups) -> PaddedRows | None:
    """The call's rows; None for a call of another kind: generation, virtual tokens, or a mixture of experts' loss."""
    known = {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head"}
    given = {name for name, value in kwargs.items() if value is not None}
    if args or not kwargs.get("fused_lm_head") or not {"input_ids", "attention_mask", "labels"} <= given <= known:
        return None
    if not bool((kwargs["labels"][:, 1:] != IGNORED).any()) or int(kwargs["attention_mask"].sum(1).min()) < 2:
        return None
    return PaddedRows(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"], groups)


def _equals_own(causal_lm: PreTrainedModel, own: Callable[..., Any], rows: PaddedRows, path: LogprobPath) -> bool:
    """Without dropout, which would draw random numbers, too: a resumed run compares where the whole one did not."""
    few, was_training = rows.first_groups(), causal_lm.training
    causal_lm.eval()
    try:
        with torch.no_grad():
            found = per_token(causal_lm, own, few, path).log_probs
            wanted = own(
                input_ids=few.input_ids, attention_mask=few.attention_mask, labels=few.labels, fused_lm_head=True
            ).log_probs
    finally:
        causal_lm.train(was_training)
    gap = float((found - wanted).abs().sum() / few.has_loss.sum().clamp(min=1))
    is_bf16 = causal_lm.dtype == torch.bfloat16 or torch.is_autocast_enabled(causal_lm.device.type)
    is_equal = gap <= _MOST_NATS[is_bf16]
    logger.log(
        logging.INFO if is_equal else logging.WARNING,
        "log-probabilities by %s %s TRL's at %d tokens: %.1e nats apart",
        path, "equal" if is_equal else "are not used: they differ from", rows.input_ids.shape[1], gap,
    )  # fmt: skip
    return is_equal
