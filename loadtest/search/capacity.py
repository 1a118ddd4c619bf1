"""The highest rate that meets an SLO, by bisection. Pure: the measurement is an argument.

The next probe is the geometric mean of the highest passing and the lowest failing rate, until they are within the
tolerance. A rate fails only if two probes fail, so that one outlier does not change the result much.
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

OUTCOMES = Literal["found", "below_low", "above_high", "out_of_probes"]


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
    probes: tuple[RateRun, ...]
    reason: str = Field(description="Summary in one sentence.")


def find_capacity(
    measure: Measure,
    low: float,
    high: float,
    tolerance: float = 0.1,
    max_probes: int = 16,
    *,
    probes: Sequence[RateRun] = (),
    on_probe: Callable[[RateRun], None] = lambda probe: None,
) -> CapacityResult:
    """Search between two rates, `low` first, then `high`, then in between.

    Args:
        tolerance: The search ends when the failing rate is at most this much above the holding one.
        max_probes: Most runs, repetitions and earlier probes included.
        probes: Of an earlier search with the same bounds, which is taken up where it ended.
        on_probe: Told of each new one.

    Raises:
        SweepError: Not 0 < low < high, or a tolerance or number of probes that is not positive.
    """
    _check_bounds(low, high, tolerance, max_probes)
    search = _Search(measure, tolerance, max_probes, list(probes), on_probe)
    try:
        if not search.holds(low):
            return search.result("below_low", None, low)
        if search.holds(high):
            return search.result("above_high", high, None)
        while high > low * (1 + tolerance):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if search.holds(middle) else (low, middle)
    except _OutOfProbesError:
        return search.unfinished()
    return search.result("found", low, high)


def most_probes(low: float, high: float, tolerance: float) -> int:
    """Largest number of probes of a search, if every failing rate is repeated."""
    halvings = math.ceil(math.log2(max(1.0, math.log(high / low) / math.log1p(tolerance))))
    return 1 + 2 + 2 * halvings


class _OutOfProbesError(Exception):
    """No probe is left."""


class _Search:
    """The probes of one search, including earlier ones; a measured rate is not measured again."""

    def __init__(
        self,
        measure: Measure,
        tolerance: float,
        max_probes: int,
        probes: list[RateRun],
        on_probe: Callable[[RateRun], None],
    ) -> None:
        self._measure = measure
        self._tolerance = tolerance
        self._max_probes = max_probes
        self._probes = probes
        self._on_probe = on_probe

    def holds(self, rate: float) -> bool:
        """Whether a rate meets the SLO in one of two runs."""
        known = self._known(rate)
        while not any(known) and len(known) < 2:
            known.append(self._probe(rate))
        return any(known)

    def unfinished(self) -> CapacityResult:
        """Summary of the probes when the limit of probes is reached."""
        rates = sorted({probe.rate for probe in self._probes})
        holding = [rate for rate in rates if any(self._known(rate))]
        failing = [rate for rate in rates if len(self._known(rate)) > 1 and not any(self._known(rate))]
        return self.result("out_of_probes", max(holding, default=None), min(failing, default=None))

    def result(self, outcome: OUTCOMES, holds: float | None, fails: float | None) -> CapacityResult:
        return CapacityResult(
            outcome=outcome,
            capacity=holds,
            holds=holds,
            fails=fails,
            tolerance=self._tolerance,
            probes=tuple(self._probes),
            reason=self._reason(outcome, holds, fails),
        )

    def _known(self, rate: float) -> list[bool]:
        return [probe.verdict.is_met for probe in self._probes if math.isclose(probe.rate, rate, rel_tol=1e-9)]

    def _probe(self, rate: float) -> bool:
        if len(self._probes) >= self._max_probes:
            raise _OutOfProbesError
        probe = RateRun(rate=rate, verdict=self._measure(rate))
        self._probes.append(probe)
        self._on_probe(probe)
        return probe.verdict.is_met

    def _reason(self, outcome: OUTCOMES, holds: float | None, fails: float | None) -> str:
        why = self._why_failed(fails)
        if outcome == "below_low":
            return f"Even {fails:.3g} requests/s fail: {why}. Lower `--low`, or loosen the SLO."
        if outcome == "above_high":
            return f"Even {holds:.3g} requests/s hold. Raise `--high` to find the limit."
        if outcome == "out_of_probes":
            known = f"{holds:.3g} requests/s hold" if holds is not None else "no rate met the SLO"
            limit = f"{fails:.3g} fail ({why})" if fails is not None else "no rate failed twice"
            return f"Out of probes: {known}, {limit}. Continue with more `--max-probes`."
        return f"{holds:.3g} requests/s hold; at {fails:.3g}: {why}."

    def _why_failed(self, rate: float | None) -> str:
        reasons = [probe.verdict.reason for probe in self._probes if probe.rate == rate and not probe.verdict.is_met]
        return reasons[-1] if reasons else "unknown"


def _check_bounds(low: float, high: float, tolerance: float, max_probes: int) -> None:
    if not 0 < low < high:
        raise SweepError(f"Rates must satisfy 0 < low < high; got low {low:g} and high {high:g} requests/s.")
    if tolerance <= 0:
        raise SweepError(f"The tolerance must be above 0, e.g. 0.1 for 10%; got {tolerance:g}.")
    if max_probes < 1:
        raise SweepError(f"A search needs at least one probe; got {max_probes}.")
