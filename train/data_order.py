"""The order of training examples, drawn from seed and epoch alone.

transformers draws the order of examples grouped by length from the global random numbers. A resumed run, whose numbers
are others when its epoch begins, then trains on other batches.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


class EpochOrder(LengthGroupedSampler):
    """Groups by length as `LengthGroupedSampler`; each epoch has its own order, the same in every run."""

    def __init__(self, grouped: LengthGroupedSampler, seed: int) -> None:
        super().__init__(grouped.batch_size, lengths=grouped.lengths)
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        indices: list[int] = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return iter(indices)


def fix_order(trainer: Trainer) -> None:
    """Make the order of a trainer that groups by length repeatable; others have a seed of their own already."""
    draw = trainer._get_train_sampler

    def sampler(train_dataset: Any = None) -> torch.utils.data.Sampler[Any] | None:
        drawn = draw(train_dataset)
        return EpochOrder(drawn, trainer.args.seed) if type(drawn) is LengthGroupedSampler else drawn

    # The trainers of all objectives, and of those to come, share no class of ours.
    trainer._get_train_sampler = sampler  # type: ignore[method-assign]
