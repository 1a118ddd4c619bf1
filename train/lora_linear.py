"""A fused LoRA linear layer for training on a CPU: additions are part of the matrix products.

PEFT adds `B A x` to the layer's output, scales it, and casts the input to LoRA's dtype and back: six passes over
the activations and their gradients, which a CPU does about as slowly as the products themselves.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear


class FusedLoraLinear(Linear):
    """Replaces PEFT's layer for plain LoRA in training; everything else uses PEFT's own forward."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not _is_plain(self):
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        (name,) = self.active_adapters
        base = self.get_base_layer()
        assert isinstance(base, torch.nn.Linear)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else base.weight.dtype
        fused: torch.Tensor = LoraProduct.apply(  # type: ignore[no-untyped-call]
            x.to(dtype),
            base.weight.to(dtype),
            None if base.bias is None else base.bias.to(dtype),
            self.lora_A[name].weight.to(dtype),
            self.lora_B[name].weight.to(dtype),
            self.scaling[name],
        )
        return fused


class LoraProduct(torch.autograd.Function):
    """x W^T + bias + scaling x A^T B^T, with W and bias frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ lora_a.T
        output = torch.nn.functional.linear(rows, weight, bias).addmm_(inner, lora_b.T, alpha=scaling)
        ctx.save_for_backward(rows, weight, lora_a, lora_b, inner)
        ctx.scaling = scaling
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, lora_a, lora_b, inner = ctx.saved_tensors
        d_output = gradients[0].reshape(-1, gradients[0].shape[-1])
        d_inner = (d_output @ lora_b).mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (d_output @ weight).addmm_(d_inner, lora_a).view(*gradients[0].shape[:-1], -1)
        d_b = (d_output.T @ inner).mul_(ctx.scaling)
        return d_x, None, None, d_inner.T @ rows, d_b, None


def fuse_lora(model: torch.nn.Module) -> int:
    """Replace PEFT's layers over plain linear layers with fused ones; returns how many were replaced."""
    layers = [m for m in model.modules() if type(m) is Linear and type(m.get_base_layer()) is torch.nn.Linear]
    for layer in layers:
        layer.__class__ = FusedLoraLinear
    return len(layers)


def _is_plain(layer: Linear) -> bool:
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1 or not torch.is_grad_enabled():
        return False
    (name,) = layer.active_adapters
    has_dropout = not isinstance(layer.lora_dropout[name], torch.nn.Identity)
    has_bias = layer.lora_B[name].bias is not None
    return not (has_dropout or has_bias or name in layer.lora_variant or layer.get_base_layer().weight.requires_grad)
