"""The C++ operator against a float64 reference, over shapes, ranks, mixes of adapters and instruction sets."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serve.kernels.packed import Rescale, SlotTable, pack_layer, padded_rank
from tests.examples import at_most
from tests.operators import require_instructions, require_operators

SLOTS = 3
Pair = tuple[Tensor, Tensor]
Rescales = list[list[Rescale | None]]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    require_operators()


@pytest.fixture(scope="module", params=["portable", "avx2", "avx512_bf16", "amx_bf16"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    available = torch.ops.lorikeet.instruction_sets()
    require_instructions(request.param, available)
    torch.ops.lorikeet.use_instruction_set(request.param)
    yield request.param
    torch.ops.lorikeet.use_instruction_set(available[-1])


@dataclass(frozen=True)
class Batch:
    """`ranks[slot][slice]`; 0: the adapter leaves the slice alone.

    Attributes:
        kinds: By slot and slice: plain LoRA, DoRA on a layer without bias, or with one.
    """

    slots: list[int]
    inputs: int
    widths: tuple[int, ...]
    ranks: list[list[int]]
    seed: int
    kinds: tuple[tuple[str, ...], ...] = (("plain",) * 3,) * SLOTS


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    if draw(st.booleans()):  # runs of one adapter, as prefills make them
        runs = draw(st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(1, 40)), min_size=1, max_size=4))
        slots = [slot for slot, length in runs for _ in range(length)]
    else:
        slots = draw(st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=40))
    widths = tuple(draw(st.lists(st.integers(1, 300), min_size=1, max_size=3)))
    rank = st.sampled_from([0, 1, 3, 8, 16, 20, 40, 64, 128, 256])
    ranks = [[draw(rank) for _ in widths] for _ in range(SLOTS)]
    kind = st.sampled_from(["plain", "dora", "dora with bias"])
    kinds = tuple(tuple(draw(kind) for _ in widths) for _ in range(SLOTS))
    return Batch(slots, 2 * draw(st.integers(1, 80)), widths, ranks, draw(st.integers(0, 2**16)), kinds)


def weights(batch: Batch) -> list[list[Pair | None]]:
    """Per slot and slice."""
    generator = torch.Generator().manual_seed(batch.seed)
    made: list[list[Pair | None]] = []
    for ranks in batch.ranks:
        pairs: list[Pair | None] = []
        for width, rank in zip(batch.widths, ranks, strict=True):
            a = torch.randn(rank, batch.inputs, generator=generator) / batch.inputs**0.5
            b = torch.randn(width, rank, generator=generator) / max(rank, 1) ** 0.5
            pairs.append((a.bfloat16(), b.bfloat16()) if rank else None)
        made.append(pairs)
    return made


def rescales(batch: Batch) -> Rescales:
    """Factors and constants of DoRA, per slot and slice; None: plain LoRA, or the slice is left alone."""
    generator = torch.Generator().manual_seed(batch.seed + 2)

    def made(kind: str, width: int, rank: int) -> Rescale | None:
        scale, shift = (torch.randn(width, generator=generator) for _ in range(2))
        return Rescale(scale, shift if kind == "dora with bias" else None) if rank and kind != "plain" else None

    return [
        [made(*each) for each in zip(kinds, batch.widths, ranks, strict=False)]
        for kinds, ranks in zip(batch.kinds, batch.ranks, strict=True)
    ]


def reference(y: Tensor, x: Tensor, batch: Batch, adapters: list[list[Pair | None]]) -> Tensor:
    """In float64, but for the hidden values, which every bfloat16 implementation rounds."""
    want = y.double()
    for slot in set(batch.slots) - {-1}:
        rows = [row for row, own in enumerate(batch.slots) if own == slot]
        start = 0
        for width, pair, rescale in zip(batch.widths, adapters[slot], rescales(batch)[slot], strict=True):
            columns = slice(start, start + width)
            if rescale is not None:
                want[rows, columns] *= rescale.scale.double()
                want[rows, columns] += 0 if rescale.shift is None else rescale.shift.double()
            if pair is not None:
                hidden = (x[rows].double() @ pair[0].double().t()).bfloat16().double()
                want[rows, columns] += hidden @ pair[1].double().t()
            start += width
    return want


def slot_table(batch: Batch, adapters: list[list[Pair | None]]) -> SlotTable:
    table = SlotTable(SLOTS, batch.widths)
    for slot, (slices, own) in enumerate(zip(adapters, rescales(batch), strict=True)):
        table.set(slot, pack_layer(slices, own))
    return table


@at_most(40)
@given(batch=batches())
def test_every_row_gets_its_own_adapter_and_base_rows_stay_as_they_are(instructions: str, batch: Batch) -> None:
    generator = torch.Generator().manual_seed(batch.seed + 1)
    x = torch.randn(len(batch.slots), batch.inputs, generator=generator).bfloat16()
    y = torch.randn(len(batch.slots), sum(batch.widths), generator=generator).bfloat16()
    adapters = weights(batch)
    table = slot_table(batch, adapters)
    got = y.clone()
    torch.ops.lorikeet.add_lora(got, x, table.table, torch.tensor(batch.slots), table.widths)
    want = reference(y, x, batch, adapters)
    # A unit in the last place of bfloat16, and hidden values that were rounded the other way.
    torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=0.02)
    base_rows = [row for row, slot in enumerate(batch.slots) if slot < 0]
    assert torch.equal(got[base_rows], y[base_rows])


def test_the_number_of_threads_changes_no_bit(instructions: str) -> None:
    """What one thread reads, no other writes: a race would show as another answer."""
    slots = [row % 4 - 1 for row in range(96)]
    kinds = (("plain",) * 3, ("dora", "plain", "dora with bias"), ("dora",) * 3)
    batch = Batch(slots, 128, (200, 72, 300), [[64, 16, 24], [128, 0, 8], [256, 256, 256]], 9, kinds)
    table = slot_table(batch, weights(batch))
    x = torch.randn(len(slots), 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    answers = []
    before = torch.get_num_threads()
    try:
        for threads in (1, *[2, 3, 4] * 10):
            torch.set_num_threads(threads)
            y = torch.zeros(len(slots), 572, dtype=torch.bfloat16)
            torch.ops.lorikeet.add_lora(y, x, table.table, torch.tensor(slots), table.widths)
            answers.append(y)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_an_output_may_be_part_of_a_wider_one(instructions: str) -> None:
    batch = Batch([0, 1, 0, 1, 0], 32, (20, 12), [[8, 8], [16, 0], [0, 0]], 5)
    adapters = weights(batch)
    table = slot_table(batch, adapters)
    wide = torch.zeros(5, 64, dtype=torch.bfloat16)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    torch.ops.lorikeet.add_lora(wide[:, :32], x, table.table, torch.tensor(batch.slots), table.widths)
    want = reference(torch.zeros(5, 32), x, batch, adapters)
    torch.testing.assert_close(wide[:, :32].double(), want, rtol=2**-7, atol=0.02)
    assert not wide[:, 32:].any()


def test_a_cleared_slot_adds_nothing(instructions: str) -> None:
    batch = Batch([0, 1], 32, (20,), [[8], [8], [8]], 3)
    table = slot_table(batch, weights(batch))
    table.clear(0)
    y = torch.zeros(2, 20, dtype=torch.bfloat16)
    x = torch.ones(2, 32, dtype=torch.bfloat16)
    torch.ops.lorikeet.add_lora(y, x, table.table, torch.tensor(batch.slots), table.widths)
    assert not y[0].any()
    assert y[1].any()


def test_a_nan_in_a_weight_reaches_its_own_rows_only(instructions: str) -> None:
    batch = Batch([0, 1, -1], 32, (20,), [[8], [8], [8]], 3)
    adapters = weights(batch)
    adapters[0][0][0][0, 0] = float("nan")  # type: ignore[index] # slot 0, slice 0, A
    table = slot_table(batch, adapters)
    y = torch.zeros(3, 20, dtype=torch.bfloat16)
    x = torch.ones(3, 32, dtype=torch.bfloat16)
    torch.ops.lorikeet.add_lora(y, x, table.table, torch.tensor(batch.slots), table.widths)
    assert y[0].isnan().all()
    assert not y[1:].isnan().any()


@pytest.mark.parametrize("kind", ["plain", "dora with bias"])
@pytest.mark.parametrize("spoilt", ["x", "y"])
def test_nan_in_a_row_stays_in_that_row(instructions: str, spoilt: str, kind: str) -> None:
    """Rows of one adapter, of another, of none, and as many that each instruction set takes several at once."""
    slots = [0] * 20 + [1] * 20 + [-1] * 5 + [0, 1] * 4
    batch = Batch(slots, 64, (40, 12), [[8, 16], [24, 0], [8, 8]], 3, ((kind, kind),) * SLOTS)
    table = slot_table(batch, weights(batch))
    generator = torch.Generator().manual_seed(1)
    rows = {
        "x": torch.randn(len(slots), 64, generator=generator),
        "y": torch.randn(len(slots), 52, generator=generator),
    }
    clean = {name: value.bfloat16() for name, value in rows.items()}
    broken = {name: value.clone() for name, value in clean.items()}
    bad = [3, 21, 41, 46]
    broken[spoilt][bad] = float("nan")
    for operands in (clean, broken):
        torch.ops.lorikeet.add_lora(operands["y"], operands["x"], table.table, torch.tensor(slots), table.widths)
    others = [row for row in range(len(slots)) if row not in bad]
    assert torch.equal(broken["y"][others], clean["y"][others])
    assert spoilt == "x" or broken["y"][bad].isnan().all()


def test_an_adapters_padding_meets_no_other_adapters_rows(instructions: str) -> None:
    """A rank is padded to eight and outputs to sixteen: beside an adapter of NaN, these are zeros all the same."""
    batch = Batch([0, 1] * 9, 32, (20,), [[3], [5], [1]], 3)
    adapters = weights(batch)
    poison = [(pair[0] * float("nan"), pair[1] * float("inf")) for pair in adapters[1] if pair]
    y, want = (torch.zeros(18, 20, dtype=torch.bfloat16) for _ in range(2))
    x = torch.randn(18, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    for target, second in ((want, adapters[1]), (y, poison)):
        table = slot_table(batch, [adapters[0], second, adapters[2]])  # type: ignore[list-item] # pairs, none missing
        torch.ops.lorikeet.add_lora(target, x, table.table, torch.tensor(batch.slots), table.widths)
    assert torch.equal(y[::2], want[::2])
    assert y[1::2].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(3, 20)}, "bfloat16"),
        ({"x": torch.zeros(2, 32, dtype=torch.bfloat16)}, "tokens"),
        ({"slots": torch.zeros(2, dtype=torch.long)}, "one a token"),
        ({"slots": torch.full((3,), SLOTS)}, "adapter slot 3 of 3"),
        ({"widths": [24]}, "wider than y"),
        ({"widths": [10, 10]}, "slices, 5"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    operands: dict[str, object] = {
        "y": torch.zeros(3, 20, dtype=torch.bfloat16),
        "x": torch.zeros(3, 32, dtype=torch.bfloat16),
        "table": SlotTable(SLOTS, (20,)).table,
        "slots": torch.zeros(3, dtype=torch.long),
        "widths": [20],
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lorikeet.add_lora(**(operands | change))


def test_dora_without_the_layers_shift_only_multiplies(instructions: str) -> None:
    batch = Batch([0], 32, (20,), [[8], [8], [8]], 3, (("dora with bias",),) * SLOTS)
    adapters, y = weights(batch), torch.ones(1, 20, dtype=torch.bfloat16)
    packed, rescale = pack_layer(adapters[0], rescales(batch)[0]), rescales(batch)[0][0]
    assert rescale is not None
    assert packed.is_rescaled
    table = SlotTable(SLOTS, batch.widths)
    table.set(0, packed.without_shift())
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    torch.ops.lorikeet.add_lora(y, x, table.table, torch.tensor([0]), table.widths)
    torch.testing.assert_close(y[0].float(), rescale.scale, rtol=2**-7, atol=0.0)


@pytest.mark.parametrize("kind", ["plain", "dora"])
@pytest.mark.parametrize("num_rows", [3, 16])
def test_changes_below_half_a_unit_are_there_on_average(instructions: str, num_rows: int, kind: str) -> None:
    """Of numbers of both signs; to nearest, none of them would change."""
    columns = 2048
    table = SlotTable(1, (columns,))
    share = 0.1  # of a unit in the last place of y
    own = [[Rescale(torch.ones(columns), None)]] if kind == "dora" else [[None]]
    pair = (torch.ones(8, 32) / 256, torch.full((columns, 8), share * 2**-7))
    table.set(0, pack_layer([pair], own[0]))
    x = torch.ones(num_rows, 32, dtype=torch.bfloat16)
    y = (1.25 + torch.rand(num_rows, columns, generator=torch.Generator().manual_seed(4)) / 2).bfloat16()
    y[:, ::2] *= -1
    before = y.clone()
    torch.ops.lorikeet.add_lora(y, x, table.table, torch.zeros(num_rows, dtype=torch.int64), table.widths)
    change = (y.double() - before.double()) / 2**-7
    assert set(change.unique().tolist()) == {0.0, 1.0}
    assert change.mean() == pytest.approx(share, rel=0.1)
    assert change[:, ::2].mean() == pytest.approx(share, rel=0.15)


def test_no_change_leaves_every_number_as_it_is(instructions: str) -> None:
    """All numbers of bfloat16 but the NaNs, infinities among them."""
    y = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    y = torch.where(y.isnan(), 1.0, y).view(32, 2048)
    table = SlotTable(1, (2048,))
    table.set(0, pack_layer([(torch.ones(8, 32), torch.zeros(2048, 8))]))
    got = y.clone()
    torch.ops.lorikeet.add_lora(
        got, torch.ones(32, 32, dtype=torch.bfloat16), table.table, torch.zeros(32, dtype=torch.int64), table.widths
    )
    assert torch.equal(got, y)


@pytest.mark.parametrize(("rank", "stored"), [(1, 8), (8, 8), (9, 16), (64, 64)])
def test_ranks_are_padded_to_eight_and_no_further(rank: int, stored: int) -> None:
    assert padded_rank(rank) == stored
    packed = pack_layer([(torch.ones(rank, 6), torch.ones(4, rank))])
    assert [part.numel() for part in packed.memory] == [stored * 6, 16 * stored]
