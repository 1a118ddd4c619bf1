"""Stochastic rounding of changed weights to bfloat16."""

import torch
from torch import Tensor, nn


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 numbers in bfloat16: up as often as one lies near the upper neighbour, so right on average.

    A base's weights are bfloat16 already. Rounding to nearest would leave each as it was that training moved by less
    than half a unit in the last place, and many such changes together are an effect. What is no change stays exact.
    Source: M. P. Connolly, N. J. Higham and T. Mary, "Stochastic Rounding and Its Probabilistic Backward Error
    Analysis", 2021.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, generator=generator).to(values.device)
    upper = ((values.contiguous().view(torch.int32) + noise) & ~0xFFFF).view(torch.float32)
    return torch.where(values.isfinite(), upper, values).bfloat16()


def round_weights(model: nn.Module) -> None:
    """`rounded` for all parameters of a model; the same model gives the same weights."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = rounded(parameter.data.float(), generator)
