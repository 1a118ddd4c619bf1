"""The highest rate that meets an SLO, by bisection. Pure: the measurement is an argument.

The next run is the geometric mean of the highest passing and the lowest failing rate, until they are within the
tolerance. A rate fails only if two runs fail, so that one outlier does not change the result much.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field

from loadtest.errors import SweepError
from loadtest.load.records import LoadtestRecord
from loadtest.report.slo import SloVerdict

Measure = Callable[[float], SloVerdict]
"""Measures a run at a rate (requests per second) and returns its verdict."""

OUTCOMES = Literal["found", "below_low", "above_high", "out_of_runs"]


class RateRun(LoadtestRecord):
    """One run at one rate."""

    rate: float = Field(description="Requests per second.")
    verdict: SloVerdict


class CapacityResult(LoadtestRecord):
    """Result of the search. The true capacity lies between `holds` and `fails`."""

    outcome: OUTCOMES
    capacity: float | None = Field(description="Highest rate that met the SLO, requests per second; None if none did.")
    holds: float | None
    fails: float | None = Field(description="Lowest rate that failed twice; None if none did.")
    tolerance: float = Field(description="Relative, 0.1 is 10%.")
    runs: tuple[RateRun, ...]
    reason: str = Field(description="Summary in one sentence.")


def find_capacity(
    measure: Measure,
    low: float,
    high: float,
    tolerance: float = 0.1,
    max_runs: int = 16,
    *,
    runs: Sequence[RateRun] = (),
    on_run: Callable[[RateRun], None] = lambda run: None,
) -> CapacityResult:
    """Search between two rates, `low` first, then `high`, then in between.

    Args:
        tolerance: The search ends when the failing rate is at most this much above the holding one.
        max_runs: Most runs, repetitions and earlier runs included.
        runs: Of an earlier search with the same bounds, which is taken up where it ended.
        on_run: Told of each new one.

    Raises:
        SweepError: Not 0 < low < high, or a tolerance or number of runs that is not positive.
    """
    _check_bounds(low, high, tolerance, max_runs)
    search = _Search(measure, tolerance, max_runs, list(runs), on_run)
    try:
        if not search.holds(low):
            return search.result("below_low", None, low)
        if search.holds(high):
            return search.result("above_high", high, None)
        while high > low * (1 + tolerance):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if search.holds(middle) else (low, middle)
    except _OutOfRunsError:
        return search.unfinished()
    return search.result("found", low, high)


def most_runs(low: float, high: float, tolerance: float) -> int:
    """Largest number of runs of a search, if every failing rate is repeated."""
    halvings = math.ceil(math.log2(max(1.0, math.log(high / low) / math.log1p(tolerance))))
    return 1 + 2 + 2 * halvings


class _OutOfRunsError(Exception):
    """No run is left."""


class _Search:
    """The runs of one search, including earlier ones; a measured rate is not measured again."""

    def __init__(
        self,
        measure: Measure,
        tolerance: float,
        max_runs: int,
        runs: list[RateRun],
        on_run: Callable[[RateRun], None],
    ) -> None:
        self._measure = measure
        self._tolerance = tolerance
        self._max_runs = max_runs
        self._runs = runs
        self._on_run = on_run

    def holds(self, rate: float) -> bool:
        """Whether a rate meets the SLO in one of two runs."""
        known = self._known(rate)
        while not any(known) and len(known) < 2:
            known.append(self._run(rate))
        return any(known)

    def unfinished(self) -> CapacityResult:
        """Summary of the runs when the limit of runs is reached."""
        rates = sorted({run.rate for run in self._runs})
        holding = [rate for rate in rates if any(self._known(rate))]
        failing = [rate for rate in rates if len(self._known(rate)) > 1 and not any(self._known(rate))]
        return self.result("out_of_runs", max(holding, default=None), min(failing, default=None))

    def result(self, outcome: OUTCOMES, holds: float | None, fails: float | None) -> CapacityResult:
        return CapacityResult(
            outcome=outcome,
            capacity=holds,
            holds=holds,
            fails=fails,
            tolerance=self._tolerance,
            runs=tuple(self._runs),
            reason=self._reason(outcome, holds, fails),
        )

    def _known(self, rate: float) -> list[bool]:
        return [run.verdict.is_met for run in self._runs if math.isclose(run.rate, rate, rel_tol=1e-9)]

    def _run(self, rate: float) -> bool:
        if len(self._runs) >= self._max_runs:
            raise _OutOfRunsError
        run = RateRun(rate=rate, verdict=self._measure(rate))
        self._runs.append(run)
        self._on_run(run)
        return run.verdict.is_met

    def _reason(self, outcome: OUTCOMES, holds: float | None, fails: float | None) -> str:
        why = self._why_failed(fails)
        if outcome == "below_low":
            return f"Even {fails:.3g} requests/s fail: {why}. Lower `--low`, or loosen the SLO."
        if outcome == "above_high":
            return f"Even {holds:.3g} requests/s hold. Raise `--high` to find the limit."
        if outcome == "out_of_runs":
            known = f"{holds:.3g} requests/s hold" if holds is not None else "no rate met the SLO"
            limit = f"{fails:.3g} fail ({why})" if fails is not None else "no rate failed twice"
            return f"Out of runs: {known}, {limit}. Continue with more `--max-runs`."
        return f"{holds:.3g} requests/s hold; at {fails:.3g}: {why}."

    def _why_failed(self, rate: float | None) -> str:
        reasons = [run.verdict.reason for run in self._runs if run.rate == rate and not run.verdict.is_met]
        return reasons[-1] if reasons else "unknown"


def _check_bounds(low: float, high: float, tolerance: float, max_runs: int) -> None:
    if not 0 < low < high:
        raise SweepError(f"Rates must satisfy 0 < low < high; got low {low:g} and high {high:g} requests/s.")
    if tolerance <= 0:
        raise SweepError(f"The tolerance must be above 0, e.g. 0.1 for 10%; got {tolerance:g}.")
    if max_runs < 1:
        raise SweepError(f"A search needs at least one run; got {max_runs}.")
