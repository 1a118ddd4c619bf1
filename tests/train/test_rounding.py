"""Stochastic rounding is unbiased, reproducible, and exact for numbers that are bfloat16 already."""

import pytest
import torch

from train.rounding import round_weights, rounded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_tenth_of_a_unit_is_there_in_a_tenth_of_the_numbers(sign: float) -> None:
    values = torch.full((200_000,), sign * (1.5 + 0.1 * 2**-7))
    steps = (rounded(values, generator()).double() * sign - 1.5) / 2**-7
    assert set(steps.unique().tolist()) == {0.0, 1.0}
    assert steps.mean() == pytest.approx(0.1, rel=0.05)


def test_numbers_of_bfloat16_stay_as_they_are() -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(rounded(values.float(), generator()).nan_to_num(7.0), values.nan_to_num(7.0))
    assert torch.equal(rounded(values.float(), generator()).isnan(), values.isnan())


def test_a_model_is_rounded_the_same_each_time_and_tied_weights_stay_tied() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        embedding, head = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False)
        head.weight = embedding.weight
        round_weights(torch.nn.ModuleList([embedding, head]))
        assert head.weight is embedding.weight
        weights.append(head.weight)
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(weights[0], weights[1])
