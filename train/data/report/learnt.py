"""What the model learns of each row, read from the batch that the trainer gets."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from train.data.checks.lengths import summarize_lengths
from train.data.encode import IGNORED, Encoded
from train.data.report.figures import Histogram, LearntRow, LearntSpan, LengthFigures, TokenFigures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUM_BINS = 24


def trainer_batch(tokenizer: "PreTrainedTokenizerBase", encoded: Sequence[Encoded]) -> dict[str, Any]:
    """`input_ids`, `labels` and `attention_mask`, each (B, T), by the trainer's own data set and collator."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from train.objectives.sft import to_dataset

    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batch: dict[str, Any] = DataCollatorForLanguageModeling(pad_token_id)(list(to_dataset(encoded)))
    return batch


def learnt_rows(
    tokenizer: "PreTrainedTokenizerBase", encoded: Sequence[Encoded], wheres: Sequence[str]
) -> list[LearntRow]:
    """The rows of one batch, split where the labels begin or end; padding is left out.

    Args:
        wheres: File and line of each row.
    """
    if not encoded:
        return []
    batch = trainer_batch(tokenizer, encoded)
    ids, labels, masks = (batch[name].tolist() for name in ("input_ids", "labels", "attention_mask"))
    return [_learnt_row(tokenizer, *row) for row in zip(ids, labels, masks, wheres, strict=True)]


def _learnt_row(
    tokenizer: "PreTrainedTokenizerBase", input_ids: list[int], labels: list[int], mask: list[int], where: str
) -> LearntRow:
    tokens = [(token, label != IGNORED) for token, label, is_row in zip(input_ids, labels, mask, strict=True) if is_row]
    spans = [
        LearntSpan(text=str(tokenizer.decode([token for token, _ in group])), is_learnt=is_learnt)
        for is_learnt, group in groupby(tokens, key=lambda each: each[1])
    ]
    num_learnt = sum(is_learnt for _, is_learnt in tokens)
    return LearntRow(
        where=where,
        spans=tuple(spans),
        num_context_tokens=len(tokens) - num_learnt,
        num_learnt_tokens=num_learnt,
    )


def token_figures(encoded: Sequence[Encoded], base: str, max_length: int) -> TokenFigures:
    """Lengths of rows and of what is learnt. `encoded` must not be empty."""
    lengths = [len(each.input_ids) for each in encoded]
    learnt = [sum(label != IGNORED for label in each.labels) for each in encoded]
    return TokenFigures(
        base=base,
        num_checked=len(encoded),
        max_length=max_length,
        num_cut=sum(each.is_cut for each in encoded),
        rows=length_figures("row", "tokens", lengths),
        learnt=length_figures("learnt", "tokens", learnt),
        histogram=histogram(lengths, max_length),
    )


def length_figures(part: str, unit: str, lengths: Sequence[int]) -> LengthFigures:
    summary = summarize_lengths(lengths)
    return LengthFigures(
        part=part,
        unit=unit,
        smallest=summary.smallest,
        median=summary.median,
        p95=summary.p95,
        p99=summary.p99,
        largest=summary.largest,
        total=summary.total,
    )


def histogram(lengths: Sequence[int], at_least: int) -> Histogram:
    """Bins of one width from 0 to the longest, or to `at_least`."""
    width = max(1, -(-(max(*lengths, at_least) + 1) // _NUM_BINS))
    edges = np.arange(_NUM_BINS + 1) * width
    counts, _ = np.histogram(lengths, edges)
    return Histogram(edges=tuple(map(int, edges)), counts=tuple(map(int, counts)))
