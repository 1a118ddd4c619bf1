from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.tiny_llama import write_tiny_llama
from train import attention
from train.attention import grouped_attention, grouped_attention_of
from train.base.quantize import load_causal_lm

ROWS, HEADS, KEY_HEADS, WIDTH = 3, 6, 2, 8


def tensors(num_queries: int, num_keys: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((HEADS, num_queries), (KEY_HEADS, num_keys), (KEY_HEADS, num_keys))
    return [torch.randn(ROWS, *shape, WIDTH, generator=generator).requires_grad_() for shape in shapes]


def with_gradients(function, inputs: list[torch.Tensor], mask: torch.Tensor | None, **kwargs) -> list[torch.Tensor]:
    module = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)
    output, _ = function(module, *inputs, mask, **kwargs)
    weights = torch.arange(output.numel(), dtype=output.dtype).view_as(output) / output.numel()
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


def padded_mask() -> torch.Tensor:
    mask = torch.ones(ROWS, 1, 5, 9, dtype=torch.bool).tril(4)
    mask[1, :, :, 7:] = False
    return mask


def additive_mask() -> torch.Tensor:
    return torch.zeros(ROWS, 1, 5, 9).masked_fill_(~padded_mask(), torch.finfo(torch.float32).min)


@pytest.mark.parametrize("mask", [padded_mask(), padded_mask()[:1], additive_mask()], ids=["bool", "one row", "added"])
@pytest.mark.parametrize("max_scores", [1, 1 << 20])
def test_attention_after_a_prefix_equals_torchs(mask, max_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_MAX_SCORES", max_scores)
    ours, theirs = (
        with_gradients(f, tensors(5, 9), mask, scaling=0.3) for f in (grouped_attention, sdpa_attention_forward)
    )
    torch.testing.assert_close(ours, theirs)


def test_attention_without_a_mask_is_causal() -> None:
    ours, theirs = (with_gradients(f, tensors(7, 7), None) for f in (grouped_attention, sdpa_attention_forward))
    torch.testing.assert_close(ours, theirs)


def test_autocast_computes_in_bfloat16() -> None:
    module: Any = SimpleNamespace(is_causal=True)
    query, key, value = tensors(7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = grouped_attention(module, query, key, value, None)
    assert output.dtype == torch.bfloat16


def test_only_for_the_block_and_only_instead_of_sdpa(tmp_path) -> None:
    model = load_causal_lm(write_tiny_llama(tmp_path / "model"))
    with grouped_attention_of(model):
        assert model.config._attn_implementation == attention.NAME
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with grouped_attention_of(model):
        assert model.config._attn_implementation == "eager"
