from itertools import product
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.betting import log_wealth, mean_bounds
from tests.examples import at_most

BINARY = np.array([0.0, 1.0])
# A busy machine is slow, not wrong.
MODERATE = at_most(50)
values_0_to_1 = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def ever_refuted(seen, mean, alpha):
    """Share of streams (rows of 0 and 1) whose wealth ever reaches 1 / alpha, looked at after every value."""
    ones = seen.cumsum(axis=1)
    counts = np.stack([np.arange(1, seen.shape[1] + 1) - ones, ones], axis=-1)
    return float((log_wealth(BINARY, counts, mean) >= log(1 / alpha)).any(axis=1).mean())


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("mean", [0.02, 0.3, 0.9])
def test_wealth_is_one_on_average_at_the_true_mean(mean, n):
    streams = list(product((0, 1), repeat=n))
    wealth = [exp(log_wealth(BINARY, [n - sum(stream), sum(stream)], mean)) for stream in streams]
    chances = [mean ** sum(stream) * (1 - mean) ** (n - sum(stream)) for stream in streams]
    assert np.dot(chances, wealth) == pytest.approx(1)


def test_every_stream_of_twelve_is_counted_and_looking_after_each_value_is_safe():
    streams = np.array(list(product((0, 1), repeat=12)))
    # All equally likely at a mean of one half, so the share is the exact probability.
    assert 0 < ever_refuted(streams, 0.5, alpha=0.2) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.05, 0.5, 0.95])
def test_six_hundred_looks_refute_the_truth_with_at_most_alpha(mean):
    streams = np.random.default_rng(1).random((400, 600)) < mean
    assert ever_refuted(streams, mean, alpha=0.1) <= 0.1
    assert ever_refuted(~streams, 1 - mean, alpha=0.1) <= 0.1


@pytest.mark.slow
def test_graded_values_of_any_distribution_are_covered():
    rng = np.random.default_rng(2)
    streams = [rng.beta(0.4, 1.6, size=150) for _ in range(150)]  # mean 0.2
    bounds = [mean_bounds(stream, 0.05, 0.05) for stream in streams]
    assert sum(low > 0.2 or high < 0.2 for low, high in bounds) <= 0.1 * len(streams)


def test_a_bound_is_where_the_wealth_reaches_one_over_alpha():
    low, high = mean_bounds([0] * 30 + [1] * 20, 0.05, 0.01)
    assert log_wealth(BINARY, [30, 20], low) == pytest.approx(log(20))
    assert log_wealth(BINARY, [20, 30], 1 - high) == pytest.approx(log(100))


def test_nothing_seen_bounds_nothing():
    assert mean_bounds([], 0.05, 0.05) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_values_that_never_vary_close_in_on_their_value(value):
    low, high = mean_bounds([value] * 1000, 0.05, 0.05)
    assert low <= value <= high
    assert high - low < 0.02


@MODERATE
@given(values_0_to_1)
def test_the_sample_mean_lies_inside(values):
    low, high = mean_bounds(values, 0.05, 0.05)
    assert 0 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= 1


@MODERATE
@given(values_0_to_1, st.floats(0, 1))
def test_a_higher_value_never_lowers_a_bound(values, other):
    before = mean_bounds(values, 0.05, 0.05)
    after = mean_bounds([max(values[0], other), *values[1:]], 0.05, 0.05)
    assert after[0] >= before[0] - 1e-9
    assert after[1] >= before[1] - 1e-9


@MODERATE
@given(values_0_to_1)
def test_low_values_bound_as_high_ones_do(values):
    low, high = mean_bounds(values, 0.05, 0.01)
    mirrored_low, mirrored_high = mean_bounds([1 - value for value in values], 0.01, 0.05)
    assert (mirrored_low, mirrored_high) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def stream(kind):
    """400 values, the same for ours and for theirs."""
    rng = np.random.default_rng(20)
    if kind == "grades":
        return rng.random(400) ** 2
    if kind == "coins":
        return (rng.random(400) < 0.1).astype(float)
    return (1.0 + (rng.random(400) < 0.3) - (rng.random(400) < 0.1)) / 2.0


# Computed by confseq (MIT; github.com/gostevehoward/confseq, commit 70b1ef3) with numpy 2.4.6:
# `diversified_betting_mart` with our fractions as constant bets, theta=1, trunc_scale=1. It is not a dependency: PyPI
# has no wheel of it, and it names `np.float_`, which numpy 2 lacks (replaced by `np.float64` for these figures).
@pytest.mark.parametrize(
    ("kind", "mean", "theirs"),
    [
        ("coins", 0.05, (4.97211484, 2.442899686, 6.517515677)),
        ("coins", 0.2, (-0.00414614, -2.122048102, -5.090232719)),
        ("coins", 0.45, (-0.912797571, -2.787279264, -6.752042621)),
        ("grades", 0.2, (-0.336304554, 4.779145269, 35.241440648)),
        ("grades", 0.45, (-1.060316726, -1.933698604, -3.639218319)),
        ("harms", 0.2, (12.955839593, 80.940259763, 284.8744183)),
        ("harms", 0.45, (1.857702606, 11.907500246, 46.07784936)),
    ],
)
def test_the_wealth_is_what_confseq_computes(kind, mean, theirs):
    values = stream(kind)
    ours = [float(log_wealth(*np.unique(values[:n], return_counts=True), mean)) for n in (20, 100, 400)]
    assert ours == pytest.approx(theirs, abs=1e-8)


# By its `betting_cs` (predictable plug-in bets, alpha=0.1, breaks=2000, no running intersection): other bets, so other
# bounds, but of the same mean and about as wide.
@pytest.mark.parametrize(
    ("kind", "n", "theirs"),
    [
        ("coins", 100, (0.058, 0.2425)),
        ("coins", 400, (0.071, 0.1615)),
        ("grades", 100, (0.197, 0.355)),
        ("grades", 400, (0.253, 0.347)),
        ("harms", 100, (0.56, 0.721)),
        ("harms", 400, (0.5765, 0.6675)),
    ],
)
def test_the_bounds_are_about_those_of_confseqs_betting(kind, n, theirs):
    ours = mean_bounds(stream(kind)[:n], 0.05, 0.05)
    assert ours == pytest.approx(theirs, abs=0.03)
    assert 0.9 < (ours[1] - ours[0]) / (theirs[1] - theirs[0]) < 1.1
