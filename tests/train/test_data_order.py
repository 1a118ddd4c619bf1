"""The order of examples, which a resumed run must find again."""

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from train.data_order import EpochOrder


def order_of(epoch: int, seed: int = 13) -> list[int]:
    order = EpochOrder(LengthGroupedSampler(2, lengths=list(range(40, 0, -1))), seed)
    order.set_epoch(epoch)
    return list(order)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = order_of(3)
    torch.rand(5)
    assert order_of(3) == first
    assert sorted(first) == list(range(40))
    assert order_of(4) != first
    assert order_of(3, seed=14) != first
