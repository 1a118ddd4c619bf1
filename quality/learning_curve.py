"""How a figure grows with the number of training rows, and how far it may grow beyond: a fit with its uncertainty.

Three forms are fitted to each bootstrap sample: a line in the logarithm of the rows, a power law towards a plateau,
and, where the figure has bounds, a power law towards its best value. An interval reaches from the lowest to the highest
that any form gives, as the form is unknown. One training per size cannot show how much one differs from the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NUM_RESAMPLES = 2000
_SEED = 13
_Z95 = 1.959964
_DECAYS = np.geomspace(0.05, 3.0, 16)
"""Exponents that are tried for a power law towards a plateau."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CurvePoint:
    """A figure of the model trained on so many rows, with its 95% interval, of n held-out items."""

    num_rows: int
    value: float
    ci_low: float
    ci_high: float
    n: int


@dataclass(frozen=True)
class Extrapolation:
    """The figure at more rows than were trained on, minus that at the most rows; with its 95% interval."""

    num_rows: int
    gain: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class CurveFit:
    """Value with its 95% interval at numbers of rows: what a plot draws."""

    num_rows: tuple[int, ...]
    value: tuple[float, ...]
    ci_low: tuple[float, ...]
    ci_high: tuple[float, ...]


class LearningCurve:
    """Points of at least two sizes.

    Args:
        bounds: Lowest and highest value of the figure; None: unbounded.

    Raises:
        ValueError: The points have fewer than two different sizes.
    """

    def __init__(
        self, points: Sequence[CurvePoint], bounds: tuple[float, float] | None, *, higher_is_better: bool = True
    ) -> None:
        if len({point.num_rows for point in points}) < 2:
            raise ValueError("A learning curve needs points of at least two sizes.")
        self.points = sorted(points, key=lambda point: point.num_rows)
        self._bounds, self._sign = bounds, 1.0 if higher_is_better else -1.0
        self._log_rows = np.log([point.num_rows for point in self.points])
        values = np.array([point.value for point in self.points])
        errors = np.array([(point.ci_high - point.ci_low) / (2 * _Z95) for point in self.points])
        rng = np.random.default_rng(_SEED)
        self._draws = self._bounded(rng.normal(values, errors, size=(_NUM_RESAMPLES, len(values))))

    def gain(self, factor: float) -> Extrapolation:
        """What `factor` times the most rows may add; a gain is positive even where lower is better."""
        most = self.points[-1].num_rows
        more = round(factor * most)
        return Extrapolation(more, *_widest(self._sign * (self._predicted(more) - self._predicted(most))))

    def fit(self, sizes: Sequence[int]) -> CurveFit:
        values, lows, highs = zip(*(_widest(self._predicted(n)) for n in sizes), strict=True)
        return CurveFit(tuple(sizes), values, lows, highs)

    def _predicted(self, num_rows: int) -> Values:
        """Predictions (F, B) by each form for each bootstrap sample."""
        at = float(np.log(num_rows))
        found = [_line_at(self._log_rows, self._draws, at)]
        if len(self.points) > 2:
            found.append(_plateau_at(self._log_rows, self._draws, at))
        free = self._bounded(np.stack(found))
        if self._bounds is None or not np.all(np.isfinite(self._bounds)):
            return free
        low, high = self._bounds
        best, width = (high, high - low) if self._sign > 0 else (low, high - low)
        smallest = 0.5 / max(point.n for point in self.points)
        distance = np.maximum(np.abs(best - self._draws) / width, smallest)
        power = np.minimum(np.exp(_line_at(self._log_rows, np.log(distance), at)), 1.0)
        return np.concatenate([free, (best - self._sign * width * power)[None]])

    def _bounded(self, values: Values) -> Values:
        return values if self._bounds is None else np.clip(values, *self._bounds)


def _widest(predicted: Values) -> tuple[float, float, float]:
    """Median of all forms (F, B), and the 95% interval that holds that of each form."""
    low, high = np.quantile(predicted, (0.025, 0.975), axis=1)
    return float(np.median(predicted)), float(low.min()), float(high.max())


def _line_at(x: Values, y: Values, at: float) -> Values:
    """The least-squares line of each row of `y` (B, P) over `x` (P,), at one place."""
    centred = x - x.mean()
    slope = (y * centred).sum(axis=1) / (centred**2).sum()
    predicted: Values = y.mean(axis=1) + slope * (at - x.mean())
    return predicted


def _plateau_at(x: Values, y: Values, at: float) -> Values:
    """As `_line_at`, of the best fit `plateau - scale * rows ** -decay` of each row."""
    best, least = np.zeros(len(y)), np.full(len(y), np.inf)
    for decay in _DECAYS:
        z = np.exp(-decay * (x - x[-1]))
        fitted = np.stack([_line_at(z, y, float(each)) for each in z], axis=1)
        residual = ((y - fitted) ** 2).sum(axis=1)
        is_better = residual < least
        least = np.where(is_better, residual, least)
        best = np.where(is_better, _line_at(z, y, float(np.exp(-decay * (at - x[-1])))), best)
    return best
