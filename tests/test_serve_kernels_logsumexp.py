"""The normaliser of a row of logits, by our operator, beside float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serve.kernels.build import load_kernels

INFINITY = float("inf")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if not load_kernels() or not torch.ops.lorikeet.log_sum_exp_is_fast():
        pytest.skip("the operator cannot be compiled here, or this CPU has no AVX-512")


def log_sum_exp(logits: Tensor) -> Tensor:
    result: Tensor = torch.ops.lorikeet.log_sum_exp(logits)
    return result


def expected(logits: Tensor) -> Tensor:
    return logits.double().logsumexp(-1, keepdim=True).float()


@given(
    rows=st.integers(1, 20),
    tokens=st.integers(1, 3000),
    scale=st.sampled_from([1e-3, 1.0, 20.0, 1e4]),
    shift=st.sampled_from([-1000.0, 0.0, 1000.0]),
    seed=st.integers(0, 1 << 16),
)
def test_it_is_that_of_float64(rows: int, tokens: int, scale: float, shift: float, seed: int) -> None:
    noise = torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed))
    logits = (noise * scale + shift).bfloat16()
    torch.testing.assert_close(log_sum_exp(logits), expected(logits), atol=5e-6, rtol=1e-6)


def test_a_whole_vocabulary() -> None:
    logits = (torch.randn(16, 262_144, generator=torch.Generator().manual_seed(1)) * 3).bfloat16()
    torch.testing.assert_close(log_sum_exp(logits), expected(logits), atol=5e-6, rtol=1e-6)


def test_rows_may_lie_apart() -> None:
    logits = torch.randn(4, 1000).bfloat16()[::2, :700]
    torch.testing.assert_close(log_sum_exp(logits), expected(logits), atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("place", [0, 31, 32, 99])
def test_what_is_masked_does_not_count(place: int) -> None:
    logits = torch.full((1, 100), -INFINITY).bfloat16()
    logits[0, place] = 2.5
    assert log_sum_exp(logits).item() == 2.5


@pytest.mark.parametrize("place", [0, 31, 32, 99])
@pytest.mark.parametrize("value", [float("nan"), INFINITY])
def test_what_is_no_number_shows(place: int, value: float) -> None:
    logits = torch.zeros(2, 100).bfloat16()
    logits[0, place] = value
    broken, sound = log_sum_exp(logits).flatten().tolist()
    assert broken != broken
    assert sound == pytest.approx(torch.tensor(100.0).log().item())


@pytest.mark.parametrize("logits", [torch.zeros(2, 3), torch.zeros(3).bfloat16(), torch.zeros(3, 2).bfloat16().T])
def test_other_tensors_are_refused(logits: Tensor) -> None:
    with pytest.raises(RuntimeError, match="bfloat16"):
        log_sum_exp(logits)
