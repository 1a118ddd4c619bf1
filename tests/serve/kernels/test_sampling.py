"""Tokens drawn from rows of logits, and a row's normaliser, by our operators, beside float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.operators import require_avx2, require_operators

INFINITY = float("inf")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    require_operators()
    require_avx2()
    assert torch.ops.lorikeet.has_fast_sampling()


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


@pytest.mark.slow
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


def draw(logits: Tensor, temperature: float, uniform: float, *, with_logprobs: bool = True) -> tuple[Tensor, Tensor]:
    rows = len(logits)
    uniforms = torch.full((rows,), uniform, dtype=torch.float64)
    drawn: tuple[Tensor, Tensor] = torch.ops.lorikeet.draw(
        logits, torch.full((rows,), temperature), uniforms, with_logprobs
    )
    return drawn


@given(
    rows=st.integers(1, 5),
    tokens=st.integers(1, 3000),
    scale=st.sampled_from([1e-3, 1.0, 20.0]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    uniform=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 1 << 16),
)
def test_a_token_is_drawn_where_the_sum_of_probabilities_passes_the_uniform_number(
    rows: int, tokens: int, scale: float, temperature: float, uniform: float, seed: int
) -> None:
    logits = (torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()
    drawn, logprobs = draw(logits, temperature, uniform)
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    passed = sums.gather(-1, drawn[:, None])
    before = torch.where(drawn[:, None] > 0, sums.gather(-1, (drawn[:, None] - 1).clamp(0)), 0.0)
    assert ((before <= uniform + 1e-5) & (passed >= uniform - 1e-5)).all()
    expected = logits.double().log_softmax(-1).gather(-1, drawn[:, None]).float()
    torch.testing.assert_close(logprobs, expected, atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    row = torch.tensor([0.0, 1.0, 2.0, 0.5, -INFINITY, 1.5]).bfloat16()
    num = 60_000
    uniforms = torch.rand(num, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn, _ = torch.ops.lorikeet.draw(row.repeat(num, 1), torch.full((num,), temperature), uniforms, False)
    shares = torch.bincount(drawn, minlength=6) / num
    torch.testing.assert_close(shares, (row.float() / temperature).softmax(-1), atol=0.01, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 1e-16])
@pytest.mark.parametrize("tokens", [100, 5000])
def test_what_is_masked_is_never_drawn(tokens: int, uniform: float) -> None:
    logits = torch.full((3, tokens), -INFINITY).bfloat16()
    logits[:, tokens // 2] = -3.0
    drawn, logprobs = draw(logits, 1.0, uniform)
    assert drawn.tolist() == [tokens // 2] * 3
    assert logprobs.flatten().tolist() == [0.0] * 3


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_without_temperature_the_first_of_the_likeliest_is_drawn(temperature: float) -> None:
    logits = torch.randint(-9, 9, (20, 777), generator=torch.Generator().manual_seed(1)).bfloat16()  # with ties
    drawn, logprobs = draw(logits, temperature, 0.5)
    assert drawn.tolist() == [row.index(max(row)) for row in logits.tolist()]
    torch.testing.assert_close(logprobs, logits.float().log_softmax(-1).amax(-1, keepdim=True), atol=5e-6, rtol=1e-6)


def test_log_probabilities_that_nobody_wants_are_zero() -> None:
    _, logprobs = draw(torch.randn(2, 50).bfloat16(), 1.0, 0.5, with_logprobs=False)
    assert logprobs.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("place", [0, 31, 32, 599])
@pytest.mark.parametrize("value", [float("nan"), INFINITY])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_what_is_no_number_still_gives_a_token(place: int, value: float, temperature: float) -> None:
    logits = torch.zeros(2, 600).bfloat16()
    logits[0, place] = value
    drawn, logprobs = draw(logits, temperature, 0.5)
    assert ((drawn >= 0) & (drawn < 600)).all()
    broken, sound = logprobs.flatten().tolist()
    assert broken != broken
    assert sound == pytest.approx(-torch.tensor(600.0).log().item())


@pytest.mark.parametrize("value", [float("nan"), INFINITY, -INFINITY])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_row_that_is_all_no_number_leaves_the_others_as_they_are(value: float, temperature: float) -> None:
    logits = torch.randn(9, 700, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = torch.full((9, 800), value).bfloat16()  # and so is what lies between the rows
    wide[:, :700] = logits
    wide[4] = value
    drawn, logprobs = draw(wide[:, :700], temperature, 0.5)
    want, want_logprobs = draw(logits, temperature, 0.5)
    others = [row for row in range(9) if row != 4]
    assert torch.equal(drawn[others], want[others])
    assert torch.equal(logprobs[others], want_logprobs[others])
    assert 0 <= drawn[4] < 700


@pytest.mark.parametrize(
    ("temperatures", "uniforms", "name"),
    [
        (torch.ones(2), torch.zeros(3, dtype=torch.float64), "uniforms"),
        (torch.ones(2), torch.zeros(2), "uniforms"),
        (torch.ones(3), torch.zeros(2, dtype=torch.float64), "temperatures"),
        (torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), "temperatures"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused(temperatures: Tensor, uniforms: Tensor, name: str) -> None:
    with pytest.raises(RuntimeError, match=name):
        torch.ops.lorikeet.draw(torch.zeros(2, 5).bfloat16(), temperatures, uniforms, False)


@pytest.mark.parametrize("logits", [torch.zeros(2, 3), torch.zeros(3).bfloat16(), torch.zeros(3, 2).bfloat16().T])
def test_other_tensors_are_refused(logits: Tensor) -> None:
    with pytest.raises(RuntimeError, match="bfloat16"):
        log_sum_exp(logits)
