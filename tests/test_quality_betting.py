from itertools import product
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.betting import log_wealth, mean_bounds

BINARY = np.array([0.0, 1.0])
# A busy machine is slow, not wrong.
MODERATE = settings(max_examples=50, deadline=None)
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


@pytest.mark.parametrize("mean", [0.05, 0.5, 0.95])
def test_six_hundred_looks_refute_the_truth_with_at_most_alpha(mean):
    streams = np.random.default_rng(1).random((400, 600)) < mean
    assert ever_refuted(streams, mean, alpha=0.1) <= 0.1
    assert ever_refuted(~streams, 1 - mean, alpha=0.1) <= 0.1


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
