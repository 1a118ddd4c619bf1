import numpy as np
import pytest

from quality.intervals import paired_difference


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
