import numpy as np
import pytest

from adapters.scores import wilson_interval
from quality.intervals import paired_difference, unpaired_difference


@pytest.mark.parametrize(("n", "agree", "worse"), [(40, 0.9, 0.05), (240, 0.8, 0.1), (240, 0.95, 0.04)])
def test_the_interval_of_a_paired_difference_holds_the_true_one(n, agree, worse):
    rng = np.random.default_rng(1)
    counts = rng.multinomial(n, [worse, 1 - agree - worse, agree], size=2000)
    true = (1 - agree - worse) - worse
    intervals = (paired_difference(int(first), int(second), n) for first, second, _ in counts)
    assert np.mean([low <= true <= high for low, high in intervals]) > 0.935


def test_no_difference_among_few_is_not_sure():
    low, high = paired_difference(0, 0, 10)
    assert (low, high) == pytest.approx((-0.163, 0.163), abs=1e-3)


@pytest.mark.parametrize("counts", [(-1, 0, 3), (0, -1, 3), (2, 2, 3)])
def test_impossible_pairs_are_refused(counts):
    with pytest.raises(ValueError, match="must be at least 0 and sum to at most"):
        paired_difference(*counts)


def test_shares_of_different_things_have_newcombes_interval():
    first, second = ((right / n, *wilson_interval(right, n)) for right, n in ((48, 80), (56, 70)))
    # Newcombe (1998), table II, example (a), method 10.
    assert unpaired_difference(first, second) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_the_interval_of_an_unpaired_difference_holds_the_true_one():
    rng = np.random.default_rng(1)
    counts = zip(rng.binomial(32, 0.7, 2000), rng.binomial(200, 0.5, 2000), strict=True)
    shares = (((a / 32, *wilson_interval(int(a), 32)), (b / 200, *wilson_interval(int(b), 200))) for a, b in counts)
    intervals = (unpaired_difference(first, second) for first, second in shares)
    assert 0.93 <= np.mean([low <= -0.2 <= high for _, low, high in intervals]) <= 0.97
