"""Grouped LoRA against a float64 reference, over shapes, ranks and mixes of adapters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serve.kernels.grouped import add_lora, group_tokens
from tests.examples import at_most

SLOTS = 3


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], int, int, tuple[int, ...], int]:
    slots = draw(st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=12))
    widths = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    return slots, draw(st.integers(1, 20)), draw(st.integers(1, 8)), widths, draw(st.integers(0, 2**16))


def reference(
    y: Tensor, x: Tensor, slots: list[int], lora_a: list[Tensor], lora_b: list[Tensor], scale: float
) -> Tensor:
    """Row by row, in float64."""
    want = y.double().clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            delta = [b[slot, 0].double() @ (a[slot, 0].double() @ x[row].double()) for a, b in zip(lora_a, lora_b)]  # noqa: B905 - same length
            want[row] += scale * torch.cat(delta)
    return want


@pytest.mark.slow
@at_most(60)
@given(batches())
def test_every_row_gets_its_own_adapter_and_base_rows_stay_as_they_are(
    batch: tuple[list[int], int, int, tuple[int, ...], int],
) -> None:
    slots, inputs, rank, widths, seed = batch
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(slots), inputs, generator=generator)
    y = torch.randn(len(slots), sum(widths), generator=generator)
    lora_a = [torch.randn(SLOTS, 1, rank, inputs, generator=generator) for _ in widths]
    lora_b = [torch.randn(SLOTS, 1, width, rank, generator=generator) for width in widths]
    want = reference(y, x, slots, lora_a, lora_b, 0.5)
    before = y.clone()
    add_lora(y, x, group_tokens(slots), lora_a, lora_b, widths, 0.5)
    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-4)
    base_rows = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[base_rows], before[base_rows])


def test_adjacent_rows_are_one_slice_and_scattered_rows_an_index() -> None:
    adjacent, scattered = group_tokens([0, 0, 1, -1, 1])
    assert adjacent.rows == slice(0, 2)
    assert isinstance(scattered.rows, Tensor)
    assert scattered.rows.tolist() == [2, 4]


@pytest.mark.parametrize("slots", [[0, 0, 0], [0, -1, 0]])
def test_changes_below_half_a_unit_are_there_on_average(slots: list[int]) -> None:
    share, columns = 0.1, 4096  # of a unit in the last place of y
    y = (1 + torch.rand(3, columns, generator=torch.Generator().manual_seed(4))).bfloat16()
    before = y.clone()
    lora_b = torch.full((1, 1, columns, 1), share * 2**-7).bfloat16()
    x, lora_a = torch.ones(3, 1).bfloat16(), torch.ones(1, 1, 1, 1).bfloat16()
    add_lora(y, x, group_tokens(slots), [lora_a], [lora_b], [columns])
    change = (y.double() - before.double()) / 2**-7
    rows = [row for row, slot in enumerate(slots) if slot == 0]
    assert set(change[rows].unique().tolist()) == {0.0, 1.0}
    assert change[rows].mean() == pytest.approx(share, rel=0.1)
    assert not change[[row for row, slot in enumerate(slots) if slot < 0]].any()


def test_a_nan_stays_a_nan() -> None:
    y = torch.tensor([[float("nan"), 1.0]]).bfloat16()
    one = torch.ones(1, 1, 1, 1).bfloat16()
    add_lora(y, torch.ones(1, 1).bfloat16(), group_tokens([0]), [one], [one.expand(1, 1, 2, 1)], [2])
    assert y.isnan().tolist() == [[True, False]]
