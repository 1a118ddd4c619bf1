"""Rows of several pieces that do not attend to each other: documents of `text`, examples of `sft`."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from train.data.documents import first_fit
from train.data.encode import IGNORED, Encoded


def packed_examples(examples: Sequence[Encoded], size: int) -> Dataset:
    """Rows of at most `size` tokens: `input_ids`, `labels`, and the `seq_lengths` of their examples."""
    rows = first_fit([len(example) for example in examples], size)
    columns = [
        {
            "input_ids": [token for n in row for token in examples[n].input_ids],
            "labels": [label for n in row for label in examples[n].labels],
            "seq_lengths": [len(examples[n]) for n in row],
        }
        for row in rows
    ]
    return Dataset.from_list(columns)


def packed_batch(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, (B, T) each, without an attention mask.

    `position_ids` begin at 0 with every piece: transformers lets no token attend across such a beginning. The padding
    is a piece without labels, and a piece's first token, which nothing predicts, has no label.
    """
    size = max(len(row["input_ids"]) for row in rows)
    ids, labels, positions = (torch.zeros(len(rows), size, dtype=torch.long) for _ in range(3))
    labels.fill_(IGNORED)
    for n, row in enumerate(rows):
        length, start = len(row["input_ids"]), 0
        ids[n, :length] = torch.tensor(row["input_ids"])
        for count in [*row["seq_lengths"], size - length]:
            end = start + count
            positions[n, start:end] = torch.arange(count)
            if end <= length:
                labels[n, start + 1 : end] = torch.tensor(row["labels"][start + 1 : end])
            start = end
    return {"input_ids": ids, "labels": labels, "position_ids": positions}
