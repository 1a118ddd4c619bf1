"""Extrapolation of learning curves: what is predicted, and how far that can be trusted."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from quality.learning_curve import CurvePoint, LearningCurve

SIZES = (200, 600, 2000)


def point(num_rows: int, value: float, half: float = 0.001, n: int = 10_000) -> CurvePoint:
    return CurvePoint(num_rows, value, value - half, value + half, n)


def test_a_line_in_the_logarithm_is_continued() -> None:
    curve = LearningCurve([point(n, 2 * math.log(n)) for n in SIZES], None)
    gain = curve.gain(2)
    assert gain.num_rows == 4000
    assert gain.gain == pytest.approx(2 * math.log(2), rel=0.05)
    assert gain.ci_low < gain.gain < gain.ci_high


def test_a_power_law_is_within_the_interval() -> None:
    curve = LearningCurve([point(n, 1 - 4 * n**-0.3) for n in SIZES], (0, 1))
    true = 4 * (2000**-0.3 - 4000**-0.3)
    assert curve.gain(2).ci_low <= true <= curve.gain(2).ci_high


def test_no_prediction_exceeds_the_bounds() -> None:
    curve = LearningCurve([point(200, 0.7), point(600, 0.9), point(2000, 0.99)], (0, 1))
    assert curve.gain(1000).gain <= 0.011
    assert max(curve.fit((2000, 200_000)).ci_high) <= 1


def test_wider_points_give_a_wider_gain() -> None:
    narrow, wide = (
        LearningCurve([point(n, 0.1 * math.log(n), half) for n in SIZES], (0, 1)).gain(2) for half in (0.01, 0.1)
    )
    assert wide.ci_high - wide.ci_low > narrow.ci_high - narrow.ci_low


def test_falling_is_a_gain_where_lower_is_better() -> None:
    curve = LearningCurve([point(n, 5 - 0.3 * math.log(n)) for n in SIZES], None, higher_is_better=False)
    assert curve.gain(2).gain == pytest.approx(0.3 * math.log(2), rel=0.05)


def test_one_size_is_no_curve() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        LearningCurve([point(200, 0.5)], (0, 1))


def covered(seed: int, true: Callable[[int], float]) -> bool:
    """Whether the interval of one simulated experiment of 200 questions holds the true gain."""
    rng = np.random.default_rng(seed)
    points = []
    for num_rows in SIZES:
        value = rng.binomial(200, true(num_rows)) / 200
        half = 1.96 * math.sqrt(max(value * (1 - value), 0.002) / 200)
        points.append(CurvePoint(num_rows, value, value - half, value + half, 200))
    gain = LearningCurve(points, (0, 1)).gain(2)
    return gain.ci_low <= true(4000) - true(2000) <= gain.ci_high


@pytest.mark.slow
@pytest.mark.parametrize(
    "true",
    [
        pytest.param(lambda n: 1 - 3 * n**-0.25, id="power law"),
        pytest.param(lambda n: 0.6 - 30 * n**-0.8, id="plateau", marks=pytest.mark.slow),
        pytest.param(lambda n: 0.1 * math.log(n) - 0.3, id="line", marks=pytest.mark.slow),
    ],
)
def test_intervals_hold_the_true_gain_of_simulations(true: Callable[[int], float]) -> None:
    assert sum(covered(seed, true) for seed in range(100)) >= 93
