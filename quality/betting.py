"""Bounds on the mean of values in [0, 1] that hold at all sample sizes simultaneously (anytime-valid).

Testing by betting (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86,
2024). Whoever holds that the mean is at most m pays 1 + f (x/m - 1) for a stake of 1 on the value x. If they are right,
no such bet gains on average, whatever the distribution and the dependence on the past; so the wealth passes 1/alpha,
at any time, with probability at most alpha (Ville's inequality). The wealth here is the mean over a few fixed fractions
f, the paper's diversified Kelly bets; it depends on the values seen, not on their order.
"""

from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

# Factors of two cost at most a sixth of the best fixed bet's growth. None is 1: one loss must not end a bet for good.
_FRACTIONS = 0.98 / 2.0 ** np.arange(7)

_SMALLEST_MEAN = 1e-9
_ROOT_TOLERANCE = 1e-12


def log_wealth(values: NDArray[np.float64], counts: ArrayLike, mean: float) -> NDArray[np.float64]:
    """Natural logarithm of the wealth won from "the mean is at most `mean`", from a start of 1.

    Args:
        values: (U,) distinct values, each 0 to 1.
        counts: (..., U) how often each was seen; one wealth for each leading index.
        mean: Above 0, at most 1.
    """
    growth = np.log1p(np.outer(values / mean - 1, _FRACTIONS))
    return np.asarray(np.logaddexp.reduce(np.asarray(counts) @ growth, axis=-1) - log(len(_FRACTIONS)))


def mean_bounds(values: ArrayLike, alpha_low: float, alpha_high: float) -> tuple[float, float]:
    """Lower and upper bound of the mean.

    Over all sample sizes together, the lower one is ever above the mean with probability at most `alpha_low`, the
    upper one ever below it with probability at most `alpha_high`.

    Args:
        values: (n,) each 0 to 1; their expectation, given those before, is the mean.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    return _lower_bound(distinct, counts, alpha_low), 1.0 - _lower_bound(1.0 - distinct, counts, alpha_high)


def _lower_bound(values: NDArray[np.float64], counts: NDArray[np.int64], alpha: float) -> float:
    """The smallest mean not rejected by the wealth, which decreases in the mean."""

    def excess(mean: float) -> float:
        return float(log_wealth(values, counts, mean)) + log(alpha)

    if not len(values) or values.max() <= _SMALLEST_MEAN or excess(_SMALLEST_MEAN) <= 0:
        return 0.0
    # At the sample's own mean no fixed bet has gained (Jensen), so the root lies below it.
    return float(brentq(excess, _SMALLEST_MEAN, float(np.average(values, weights=counts)), xtol=_ROOT_TOLERANCE))
