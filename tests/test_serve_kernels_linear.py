"""The product of bfloat16 weights by AVX2 against float64."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.functional import linear

from serve.engine.linear import register_for_compilation
from serve.kernels.build import load_kernels
from serve.kernels.packed import pack_b

BF16_STEP = 2.0**-8
"""Relative: a bfloat16 has eight bits."""


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if not (load_kernels() and torch.ops.lorikeet.has_own_linear()):
        pytest.skip("the operator cannot be compiled here, or this CPU has no AVX2")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.lorikeet.linear(x, pack_b(weight), len(weight), bias)
    return result


@given(st.integers(1, 40), st.integers(1, 18), st.integers(1, 100), st.booleans(), st.integers(0, 2**16))
@example(rows=300, eighths=72, outputs=192, has_bias=True, seed=1)  # several blocks of rows
def test_it_is_the_product_rounded_once(rows: int, eighths: int, outputs: int, has_bias: bool, seed: int) -> None:
    x, weight = numbers(rows, 8 * eighths, seed=seed), numbers(outputs, 8 * eighths, seed=seed + 1)
    bias = numbers(outputs, seed=seed + 2) if has_bias else None
    wanted = linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = linear(x.double().abs(), weight.double().abs())  # what rounding of the sums is relative to
    error = (product(x, weight, bias).double() - wanted).abs()
    assert (error <= wanted.abs() * BF16_STEP + size * 1e-6).all()


def test_leading_dimensions_and_strides_are_kept() -> None:
    x, weight = numbers(6, 5, 32).transpose(0, 1), numbers(24, 32)
    assert torch.equal(product(x, weight), product(x.reshape(30, 32), weight).view(5, 6, 24))
    assert product(x[:0], weight).shape == (0, 6, 24)


def test_the_number_of_threads_changes_nothing() -> None:
    x, weight, before = numbers(33, 128), numbers(500, 128), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(product(x, weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


def test_what_is_no_number_stays_none() -> None:
    x, weight = numbers(2, 16), numbers(20, 16)
    weight[3, 5], weight[4] = float("nan"), 0
    weight[4, 0], x[:, 0] = float("inf"), 1
    result = product(x, weight)
    assert result[:, 3].isnan().all()
    assert (result[:, 4] == float("inf")).all()
    assert result[:, 5:].isfinite().all()


@pytest.mark.parametrize(
    ("x", "weight", "outputs", "told"),
    [
        (numbers(2, 16).float(), pack_b(numbers(8, 16)), 8, "x is bfloat16"),
        (numbers(2, 16), numbers(8, 16), 8, "what pack_b makes"),
        (numbers(2, 16), pack_b(numbers(8, 16)).float(), 8, "what pack_b makes"),
        (numbers(2, 14), pack_b(numbers(8, 16)), 8, "what pack_b makes"),
    ],
    ids=["float32 x", "not packed", "float32 weight", "other inputs"],
)
def test_what_does_not_fit_is_refused(x: torch.Tensor, weight: torch.Tensor, outputs: int, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        torch.ops.lorikeet.linear(x, weight, outputs, None)


def test_it_can_be_compiled() -> None:
    register_for_compilation()
    weight = pack_b(numbers(50, 64))
    layer = torch.compile(
        lambda x: torch.ops.lorikeet.linear(x, weight, 50, None) + 1, backend="aot_eager", fullgraph=True
    )
    x = numbers(3, 64)
    assert torch.equal(layer(x), torch.ops.lorikeet.linear(x, weight, 50, None) + 1)
