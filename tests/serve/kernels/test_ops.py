"""The operators as torch.compile sees them: traced once, right for every batch after that."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serve.kernels.ops import add_embedding_lora, register_for_compilation
from serve.kernels.packed import SlotTable, pack_layer
from tests.examples import at_most
from tests.operators import require_operators

INPUTS, WIDTHS, SLOTS, RANK = 32, (16, 48), 3, 8


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    require_operators()


def _random(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def table_of(seed: int) -> tuple[SlotTable, list[Tensor]]:
    """Slots with random adapters, and what each adds: (K, N) of each slot."""
    torch.manual_seed(seed)
    table, products = SlotTable(SLOTS, WIDTHS), []
    for slot in range(SLOTS):
        pairs = [(_random(RANK, INPUTS), _random(width, RANK)) for width in WIDTHS]
        table.set(slot, pack_layer(pairs))
        products.append(torch.cat([(b.double() @ a.double()).t() for a, b in pairs], dim=1))
    return table, products


def compiled(table: SlotTable, token_slots: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    register_for_compilation()

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        output = torch.nn.functional.linear(x, weight)
        torch.ops.lorikeet.add_lora(output.view(-1, output.shape[-1]), x, table.table, token_slots, table.widths)
        return output * 2

    # aot_eager makes functions of mutations and back, as Inductor does, and compiles no C++.
    layer_of: Callable[[Tensor, Tensor], Tensor] = torch.compile(
        layer, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    return layer_of


def expected(x: Tensor, weight: Tensor, products: Sequence[Tensor], slots: Sequence[int]) -> Tensor:
    rows = [
        row @ weight.double().t() + (row @ products[slot] if slot >= 0 else 0.0)
        for row, slot in zip(x.double(), slots, strict=True)
    ]
    return torch.stack(rows) * 2


@pytest.mark.slow
def test_a_layer_traced_once_follows_other_batches_and_other_adapters() -> None:
    table, products = table_of(1)
    others, other_products = table_of(2)
    token_slots = torch.full((64,), -1)
    layer, weight = compiled(table, token_slots), torch.randn(sum(WIDTHS), INPUTS).bfloat16()
    for slots in ([-1] * 4, [0, -1, 2, 1, 1], [2] * 7):
        x = torch.randn(len(slots), INPUTS).bfloat16()
        token_slots[: len(slots)] = torch.tensor(slots)
        torch.testing.assert_close(layer(x, weight).double(), expected(x, weight, products, slots), rtol=0.05, atol=1.0)

    table.table.copy_(others.table)  # as an activation does: the traced code reads the table anew
    x = torch.randn(2, INPUTS).bfloat16()
    token_slots[:2] = torch.tensor([1, 0])
    torch.testing.assert_close(
        layer(x, weight).double(), expected(x, weight, other_products, [1, 0]), rtol=0.05, atol=1.0
    )


@at_most(40)
@given(
    slots=st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=12),
    used=st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS),
    seed=st.integers(0, 99),
)
def test_embeddings_get_the_part_of_their_adapter(slots: list[int], used: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocabulary, width = 11, 6
    lora_a = torch.randn(SLOTS, vocabulary, RANK, generator=generator)
    lora_b = torch.randn(SLOTS, 1, width, RANK, generator=generator)
    token_ids = torch.randint(0, vocabulary, (len(slots),), generator=generator)
    y = torch.randn(len(slots), width, generator=generator)
    wanted = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0 and used[slot]:
            wanted[row] += lora_b[slot, 0] @ lora_a[slot, token_ids[row]]

    padding = torch.full((5,), 1)  # what an earlier, longer batch left behind
    add_embedding_lora(y, token_ids, lora_a, lora_b, torch.tensor(used), torch.cat([torch.tensor(slots), padding]))
    torch.testing.assert_close(y, wanted)


@pytest.mark.slow
def test_torch_finds_no_fault_with_the_embedding_operator() -> None:
    tensors = (torch.zeros(2, 3), torch.tensor([1, 0]), torch.ones(1, 4, 2), torch.ones(1, 1, 3, 2))
    torch.library.opcheck(add_embedding_lora, (*tensors, torch.tensor([True]), torch.tensor([0, -1, 0])))
