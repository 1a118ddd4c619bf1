"""Stochastic rounding of changed weights to bfloat16."""

import torch
from torch import Tensor, nn


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 numbers to bfloat16 stochastically: unbiased, and exact for numbers that are bfloat16 already.

    The weights of a base are bfloat16. Rounding to nearest would drop every change of less than half a unit in the
    last place, which can be most of what training changed.

    Args:
        values: Float32, of any shape; the result has the same shape and device.
        generator: Of the CPU.

    Source: M. P. Connolly, N. J. Higham and T. Mary, "Stochastic Rounding and Its Probabilistic Backward Error
    Analysis", 2021.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, generator=generator).to(values.device)
    upper = ((values.contiguous().view(torch.int32) + noise) & ~0xFFFF).view(torch.float32)
    return torch.where(values.isfinite(), upper, values).bfloat16()


def round_weights(model: nn.Module) -> None:
    """Round all parameters of a model in place; the seed is fixed, so the result is reproducible."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = rounded(parameter.data.float(), generator)
