"""Find the working set size at which TTFT rises sharply because the server cannot hold all adapters. Pure.

A point is one run with uniform traffic over a working set of adapters. Going up in size, the plateau is the median of
the TTFT p50s so far, and the cliff the first point whose p50 is surely, with the lower end of its bootstrap interval,
above `factor` times the plateau. A p50 above it whose interval is not ends what a setting is said to carry, and asks
for a longer run.
"""

from collections.abc import Sequence
from statistics import median
from typing import Literal

from pydantic import Field

from loadtest.errors import SweepError
from loadtest.load.records import LoadtestRecord, RunResult
from loadtest.report.bootstrap import median_interval
from loadtest.report.stats import percentile, summarize, values_of

Cause = Literal["none", "max_cpu_loras", "max_loras", "load"]

MIN_REQUESTS = 10
"""Minimum number of requests for a reliable point."""

_COLD_SHARE = 0.05
"""From this share of cold requests on, loading dominates the cost."""


class CliffPoint(LoadtestRecord):
    """One run. Adapters were warmed up before, so a cold request means that its adapter had been evicted."""

    max_loras: int
    max_cpu_loras: int
    working_set: int = Field(description="Adapters in the traffic, all equally likely.")
    num_requests: int
    ttft_p50_s: float | None = Field(description="None where no request ended well.")
    ttft_p50_low_s: float | None = Field(description="95% bootstrap interval of the p50.")
    ttft_p50_high_s: float | None
    ttft_p99_s: float | None
    cold_share: float = Field(description="Of the requests that ended well.")
    error_share: float
    output_tokens_per_s: float


class Cliff(LoadtestRecord):
    """What one setting of the server can carry."""

    max_loras: int
    max_cpu_loras: int
    points: tuple[CliffPoint, ...] = Field(description="By working set, ascending.")
    carries: int | None = Field(
        description="Largest working set before the cliff; None if even the smallest is beyond it."
    )
    breaks_at: int | None = Field(description="Smallest working set beyond the cliff; None if there is none.")
    plateau_s: float | None = Field(description="TTFT p50 before the cliff.")
    cause: Cause
    reason: str


class Recommendation(LoadtestRecord):
    max_loras: int
    max_cpu_loras: int
    is_measured: bool = Field(description="Whether this setting was measured to support the working set.")
    reason: str


def point_of(result: RunResult, max_loras: int, max_cpu_loras: int, working_set: int, seed: int = 13) -> CliffPoint:
    summary, ttfts = summarize(result), values_of(result.records, "ttft")
    interval = median_interval(ttfts, seed) if ttfts else None
    return CliffPoint(
        max_loras=max_loras,
        max_cpu_loras=max_cpu_loras,
        working_set=working_set,
        num_requests=summary.num_requests,
        ttft_p50_s=percentile(ttfts, 50) if ttfts else None,
        ttft_p50_low_s=interval.low if interval else None,
        ttft_p50_high_s=interval.high if interval else None,
        ttft_p99_s=percentile(ttfts, 99) if ttfts else None,
        cold_share=summary.num_cold / summary.num_ok if summary.num_ok else 0.0,
        error_share=summary.error_share,
        output_tokens_per_s=summary.output_tokens_per_s,
    )


def find_cliff(points: Sequence[CliffPoint], factor: float = 2.0) -> Cliff:
    """The cliff of one setting.

    Raises:
        SweepError: There are no points, they are of several settings, or `factor` is not above 1.
    """
    settings = {(point.max_loras, point.max_cpu_loras) for point in points}
    if len(settings) != 1:
        raise SweepError(f"A cliff belongs to one server setting; got points of {len(settings)}.")
    if factor <= 1:
        raise SweepError(f"The factor must be above 1, e.g. 2; got {factor:g}.")
    ordered = tuple(sorted(points, key=lambda point: point.working_set))
    broken = next((i for i in range(len(ordered)) if _is_broken(ordered[i], ordered[:i], factor)), None)
    good = _undoubted(ordered if broken is None else ordered[:broken], factor)
    cause: Cause = "none" if len(good) == len(ordered) else _cause(ordered[len(good)])
    doubtful = ordered[len(good)] if len(good) not in (broken, len(ordered)) else None
    return Cliff(
        max_loras=ordered[0].max_loras,
        max_cpu_loras=ordered[0].max_cpu_loras,
        points=ordered,
        carries=good[-1].working_set if good else None,
        breaks_at=None if broken is None else ordered[broken].working_set,
        plateau_s=_plateau_s(good),
        cause=cause,
        reason=_reason(good, doubtful, None if broken is None else ordered[broken], cause) + _doubt(ordered),
    )


def recommend(cliffs: Sequence[Cliff], wanted: int | None = None) -> Recommendation:
    """Settings for so many adapters in use at a time; by default the largest working set of the sweep.

    Raises:
        SweepError: There are no cliffs.
    """
    if not cliffs:
        raise SweepError("No data for a recommendation. Sweep at least one setting.")
    size = wanted or max(point.working_set for cliff in cliffs for point in cliff.points)
    carrying = [cliff for cliff in cliffs if cliff.carries is not None and cliff.carries >= size]
    if carrying:
        cheapest = min(carrying, key=lambda cliff: (cliff.max_cpu_loras, cliff.max_loras))
        chosen = _recommendation(cheapest, cheapest.max_loras, cheapest.max_cpu_loras, size, is_measured=True)
        too_small = [f"{_setting(cliff)}: {cliff.reason}" for cliff in cliffs if cliff not in carrying]
        return chosen.model_copy(update={"reason": " ".join([chosen.reason, *too_small])})
    best = max(cliffs, key=lambda cliff: (cliff.carries or 0, -cliff.max_cpu_loras, -cliff.max_loras))
    max_loras = max(best.max_loras, size) if best.cause == "max_loras" else best.max_loras
    return _recommendation(best, max_loras, max(best.max_cpu_loras, size, max_loras), size, is_measured=False)


def _is_broken(point: CliffPoint, before: Sequence[CliffPoint], factor: float) -> bool:
    if point.ttft_p50_low_s is None:
        return True
    plateau_s = _plateau_s(before)
    if point.num_requests < MIN_REQUESTS:
        return False
    return plateau_s is not None and point.ttft_p50_low_s > factor * plateau_s


def _undoubted(points: tuple[CliffPoint, ...], factor: float) -> tuple[CliffPoint, ...]:
    """The points before the first one that looks like a cliff but is not significant."""
    for index, point in enumerate(points):
        plateau_s = _plateau_s(points[:index])
        if plateau_s is not None and point.ttft_p50_s is not None and point.ttft_p50_s > factor * plateau_s:
            return points[:index]
    return points


def _plateau_s(points: Sequence[CliffPoint]) -> float | None:
    values = [point.ttft_p50_s for point in points if point.ttft_p50_s is not None]
    return median(values) if values else None


def _cause(point: CliffPoint) -> Cause:
    if point.working_set > point.max_cpu_loras and point.cold_share >= _COLD_SHARE:
        return "max_cpu_loras"
    return "max_loras" if point.working_set > point.max_loras else "load"


def _reason(good: Sequence[CliffPoint], doubtful: CliffPoint | None, broken: CliffPoint | None, cause: Cause) -> str:
    plateau_s = _plateau_s(good)
    if doubtful is not None:
        return (
            f"TTFT p50 stays near {_ms(plateau_s)} up to {_adapters(good[-1])}; at {doubtful.working_set} it is "
            f"{_ms(doubtful.ttft_p50_s)}, but its 95% interval ({_ms(doubtful.ttft_p50_low_s)} to "
            f"{_ms(doubtful.ttft_p50_high_s)}) is too wide to be sure: measure longer."
        )
    if broken is None:
        return f"TTFT p50 stays near {_ms(plateau_s)} up to {_adapters(good[-1])}: no cliff."
    before = f"TTFT p50 stays near {_ms(plateau_s)} up to {_adapters(good[-1])} and " if good else "TTFT p50 "
    jump = f"is {_ms(broken.ttft_p50_s)} at {broken.working_set}"
    because = {
        "max_cpu_loras": f"{100 * broken.cold_share:.0f}% of the requests wait for their adapter to be loaded and "
        f"checked again, because host memory keeps {broken.max_cpu_loras} (max_cpu_loras)",
        "max_loras": f"requests wait for one of {broken.max_loras} slots (max_loras)",
        "load": "the server holds all these adapters, so the rate itself is too high for it",
        "none": "",
    }[cause]
    return f"{before}{jump}: {because}."


def _doubt(points: Sequence[CliffPoint]) -> str:
    few = [point for point in points if point.num_requests < MIN_REQUESTS]
    if not few:
        return ""
    return f" {len(few)} of the points had fewer than {MIN_REQUESTS} requests and are unreliable: measure longer."


def _adapters(point: CliffPoint) -> str:
    return "1 adapter" if point.working_set == 1 else f"{point.working_set} adapters"


def _recommendation(cliff: Cliff, max_loras: int, max_cpu_loras: int, size: int, is_measured: bool) -> Recommendation:
    if is_measured:
        ending = f"This is the smallest setting of the sweep that supports {size} adapters."
    elif cliff.cause == "load":
        ending = "Lower the rate and sweep again: the load hides the effect of the settings."
    else:
        ending = f"No setting of the sweep supports {size} adapters; this one should. Sweep it to confirm."
    reason = f"{_setting(cliff)}: {cliff.reason} {ending}"
    return Recommendation(max_loras=max_loras, max_cpu_loras=max_cpu_loras, is_measured=is_measured, reason=reason)


def _setting(cliff: Cliff) -> str:
    return f"With max_loras {cliff.max_loras} and max_cpu_loras {cliff.max_cpu_loras}"


def _ms(seconds: float | None) -> str:
    return "unknown (no request ended well)" if seconds is None else f"{1000 * seconds:.0f} ms"
