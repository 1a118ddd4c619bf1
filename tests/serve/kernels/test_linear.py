"""The product of bfloat16 weights by each kernel that this CPU can run, against float64."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from serve.engine.cpu.linear import register_for_compilation
from serve.kernels.packed import pack_b
from tests.operators import require_avx2, require_instructions, require_operators

BF16_STEP = 2.0**-8
"""Relative: a bfloat16 has eight bits."""

ANY_ROWS = 1 << 62


@pytest.fixture(scope="module", autouse=True)
def kernels() -> list[str]:
    require_operators()
    require_avx2()
    names: list[str] = torch.ops.lorikeet.linear_kernels()
    return names


@pytest.fixture(params=["avx2", "avx512", "avx512_bf16"])
def kernel(request: pytest.FixtureRequest, kernels: list[str]) -> int:
    require_instructions(request.param, kernels)
    return kernels.index(request.param)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, kernel: int = 0) -> torch.Tensor:
    result: torch.Tensor = torch.ops.lorikeet.linear_by(x, pack_b(weight), len(weight), bias, kernel)
    return result


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    eighths=st.integers(1, 18),
    outputs=st.integers(1, 100),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(rows=300, eighths=72, outputs=192, has_bias=True, seed=1)  # several blocks of rows
@example(rows=70, eighths=192, outputs=150, has_bias=False, seed=1)
def test_it_is_the_product_rounded_once(
    kernel: int, rows: int, eighths: int, outputs: int, has_bias: bool, seed: int
) -> None:
    x, weight = numbers(rows, 8 * eighths, seed=seed), numbers(outputs, 8 * eighths, seed=seed + 1)
    bias = numbers(outputs, seed=seed + 2) if has_bias else None
    wanted = linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = linear(x.double().abs(), weight.double().abs())  # what rounding of the sums is relative to
    error = (product(x, weight, bias, kernel).double() - wanted).abs()
    assert (error <= wanted.abs() * BF16_STEP + size * 1e-6).all()


def test_leading_dimensions_and_strides_are_kept(kernel: int) -> None:
    x, weight = numbers(6, 5, 32).transpose(0, 1), numbers(24, 32)
    whole = product(x.reshape(30, 32), weight, kernel=kernel)
    assert torch.equal(product(x, weight, kernel=kernel), whole.view(5, 6, 24))
    assert product(x[:0], weight, kernel=kernel).shape == (0, 6, 24)


@pytest.mark.parametrize("rows", [33, 250], ids=["one block", "several blocks"])
def test_the_number_of_threads_changes_nothing(kernel: int, rows: int) -> None:
    x, weight, before = numbers(rows, 576), numbers(500, 576), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(product(x, weight, kernel=kernel))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


@pytest.mark.parametrize("name", ["avx512", "avx512_bf16"])
def test_a_rows_product_is_the_same_in_any_batch(kernels: list[str], name: str) -> None:
    require_instructions(name, kernels)
    x, weight, number = numbers(250, 576), numbers(100, 576), kernels.index(name)
    whole = product(x, weight, kernel=number)
    for rows in (1, 2, 3, 4, 5, 6, 7, 120):
        assert torch.equal(product(x[:rows], weight, kernel=number), whole[:rows])


def test_what_is_no_number_stays_none(kernel: int) -> None:
    x, weight = numbers(2, 16), numbers(20, 16)
    weight[3, 5], weight[4] = float("nan"), 0
    weight[4, 0], x[:, 0] = float("inf"), 1
    result = product(x, weight, kernel=kernel)
    assert result[:, 3].isnan().all()
    assert (result[:, 4] == float("inf")).all()
    assert result[:, 5:].isfinite().all()


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_nan_in_a_row_stays_in_that_row(kernel: int, rows: int) -> None:
    x, weight = numbers(rows, 32), numbers(50, 32)
    want, broken = product(x, weight, kernel=kernel), x.clone()
    bad = rows // 2
    broken[bad] = float("nan")
    got = product(broken, weight, kernel=kernel)
    others = [row for row in range(rows) if row != bad]
    assert got[bad].isnan().all()
    assert torch.equal(got[others], want[others])


@pytest.mark.parametrize(
    ("x", "weight", "outputs", "kernel", "told"),
    [
        (numbers(2, 16).float(), pack_b(numbers(8, 16)), 8, 0, "x is bfloat16"),
        (numbers(2, 16), numbers(8, 16), 8, 0, "what pack_b makes"),
        (numbers(2, 16), pack_b(numbers(8, 16)).float(), 8, 0, "what pack_b makes"),
        (numbers(2, 14), pack_b(numbers(8, 16)), 8, 0, "what pack_b makes"),
        (numbers(2, 16), pack_b(numbers(8, 16)), 8, 9, "no kernel 9"),
    ],
    ids=["float32 x", "not packed", "float32 weight", "other inputs", "unknown kernel"],
)
def test_what_does_not_fit_is_refused(
    x: torch.Tensor, weight: torch.Tensor, outputs: int, kernel: int, told: str
) -> None:
    with pytest.raises(RuntimeError, match=told):
        torch.ops.lorikeet.linear_by(x, weight, outputs, None, kernel)


def table(weight: torch.Tensor, classes: Sequence[tuple[int, int]], handler: int = 0) -> torch.Tensor:
    return torch.tensor([weight.data_ptr(), handler, *(entry for pair in classes for entry in pair)])


def test_the_table_says_which_kernel_multiplies_how_many_rows() -> None:
    weight, x, missing = numbers(50, 64), numbers(40, 64), 99
    packed = pack_b(weight)
    told = table(packed, [(2, 0), (8, missing), (ANY_ROWS, 0)])
    for rows in (1, 2, 9, 40):
        assert torch.equal(torch.ops.lorikeet.linear(x[:rows], told, 50, None), product(x[:rows], weight))
    for rows in (3, 8):
        with pytest.raises(RuntimeError, match="no kernel 99"):
            torch.ops.lorikeet.linear(x[:rows], told, 50, None)


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_table_may_leave_rows_to_vllm(has_bias: bool) -> None:
    from vllm import _custom_ops as ops

    weight, x, bias = numbers(48, 64), numbers(2, 3, 64), numbers(48) if has_bias else None
    try:
        handler = ops.create_onednn_mm(weight.t(), 32)
    except (AttributeError, RuntimeError):
        pytest.skip("oneDNN has no product of bfloat16 here")
    assert handler.handler_tensor is not None
    packed = pack_b(weight)
    told = table(packed, [(4, 0), (ANY_ROWS, -1)], int(handler.handler_tensor.item()))
    assert torch.equal(torch.ops.lorikeet.linear(x, told, 48, bias), ops.onednn_mm(handler, x, bias))
    assert torch.equal(torch.ops.lorikeet.linear(x[:1], told, 48, bias), product(x[:1], weight, bias))


@pytest.mark.slow
def test_it_can_be_compiled() -> None:
    register_for_compilation()
    weight = numbers(50, 64)
    packed = pack_b(weight)
    told = table(packed, [(ANY_ROWS, 0)])
    layer = torch.compile(
        lambda x: torch.ops.lorikeet.linear(x, told, 50, None) + 1, backend="aot_eager", fullgraph=True
    )
    x = numbers(3, 64)
    assert torch.equal(layer(x), product(x, weight) + 1)
