"""Two runs side by side: each figure's ratio B/A with its interval, and whether B is better, worse or no different.

Pure. A figure is better or worse only where the whole 95% interval of the ratio lies on one side of 1 (for the share of
errors: of the difference, on one side of 0).
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from pydantic import Field

from adapters.scores import wilson_interval
from loadtest.load.records import LoadtestRecord, RequestRecord, RunResult
from loadtest.report.bootstrap import Floats, Interval, interval_of, resampled_percentiles, resampled_rates
from loadtest.report.stats import Metric, bucket_width_s, percentile, timeline, values_of
from quality.intervals import unpaired_difference

Change = Literal["better", "worse", "no difference", "unknown"]

PERCENTILES = (50, 99)
LATENCIES: tuple[Metric, ...] = ("ttft", "itl", "e2e")
MIN_REQUESTS = 10
"""Minimum number of requests on either side to compare a latency."""


class Difference(LoadtestRecord):
    """One figure of both runs: requests or tokens per second, seconds, or a share for `errors`."""

    metric: str
    model: str | None = Field(description="None: all traffic.")
    is_higher_better: bool
    a: float | None
    b: float | None
    ratio: float | None = Field(description="B/A; None for `errors`, or if a side has no value.")
    low: float | None = Field(description="95% interval of the ratio; of the difference B - A for `errors`.")
    high: float | None = Field(description="None, like `low`, if the figure is not compared.")
    change: Change

    def worsening(self) -> float:
        """Share by which B is significantly worse: the interval's end nearer to no change, else 0."""
        if self.change != "worse" or self.low is None or self.high is None:
            return 0.0
        if self.ratio is None:
            return self.low
        return 1 - self.high if self.is_higher_better else self.low - 1


class RunComparison(LoadtestRecord):
    """Result of `lorikeet loadtest compare A B`."""

    schema_version: Literal[1] = 1
    a: str
    b: str
    overall: tuple[Difference, ...]
    by_model: tuple[Difference, ...]
    warnings: tuple[str, ...]

    def worse_than(self, share: float) -> tuple[Difference, ...]:
        """Figures of all traffic that are significantly worse by more than a share, 0 to 1.

        Single models are excluded, because among many models some differ by chance.
        """
        return tuple(difference for difference in self.overall if difference.worsening() > share)


def compare(a: RunResult, b: RunResult, seed: int = 13) -> RunComparison:
    """Compare two runs; the same seed gives the same intervals."""
    models = sorted({record.model for record in a.records} & {record.model for record in b.records})
    return RunComparison(
        a=a.name,
        b=b.name,
        overall=_differences(a, b, None, seed),
        by_model=tuple(d for model in models for d in _differences(a, b, model, seed)) if len(models) > 1 else (),
        warnings=tuple(_warnings(a, b)),
    )


def _differences(a: RunResult, b: RunResult, model: str | None, seed: int) -> tuple[Difference, ...]:
    records = _records(a, model), _records(b, model)
    sides = tuple(zip(records, (a.duration_s, b.duration_s), strict=True))
    return (
        _rate_difference("requests/s", model, sides, seed),
        _rate_difference("output tokens/s", model, sides, seed),
        *(difference for metric in LATENCIES for difference in _latency_differences(metric, model, records, seed)),
        _error_difference(model, *records),
    )


def _records(run: RunResult, model: str | None) -> list[RequestRecord]:
    """Sorted by due time, so that neighbours in the list are neighbours in the queue."""
    kept = [record for record in run.records if model is None or record.model == model]
    return sorted(kept, key=lambda record: record.intended_s)


def _rate_difference(
    metric: str, model: str | None, sides: Iterable[tuple[Sequence[RequestRecord], float]], seed: int
) -> Difference:
    """Throughput, resampled over stretches of the run."""
    values, draws = [], []
    for side, (records, duration_s) in enumerate(sides):
        buckets = timeline(records, duration_s, bucket_width_s(duration_s))
        counts = [bucket.num_ok if metric == "requests/s" else bucket.output_tokens for bucket in buckets]
        values.append(sum(counts) / duration_s if duration_s > 0 else None)
        draws.append(resampled_rates(counts, duration_s or 1.0, np.random.default_rng((seed, side))))
    return _ratio_difference(metric, model, values, draws, is_higher_better=True)


def _latency_differences(
    metric: Metric, model: str | None, sides: Sequence[Sequence[RequestRecord]], seed: int
) -> Iterable[Difference]:
    """One figure per percentile, all from the same draws."""
    groups = [[found for record in records if (found := values_of([record], metric))] for records in sides]
    draws: list[Floats] = []
    if min(len(side) for side in groups) >= MIN_REQUESTS:
        draws = [
            resampled_percentiles(side, PERCENTILES, np.random.default_rng((seed, n))) for n, side in enumerate(groups)
        ]
    for place, q in enumerate(PERCENTILES):
        values = [percentile(list(chain.from_iterable(side)), q) if side else None for side in groups]
        columns = [draw[:, place] for draw in draws]
        yield _ratio_difference(f"{metric} p{q}", model, values, columns, is_higher_better=False)


def _ratio_difference(
    metric: str, model: str | None, values: Sequence[float | None], draws: Sequence[Floats], is_higher_better: bool
) -> Difference:
    a, b = values
    ratio = b / a if a and b is not None else None
    is_judged = ratio is not None and bool(draws)
    interval = None
    if is_judged:
        with np.errstate(divide="ignore", invalid="ignore"):
            interval = interval_of(draws[1] / draws[0])
    return Difference(
        metric=metric,
        model=model,
        is_higher_better=is_higher_better,
        a=a,
        b=b,
        ratio=ratio,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        change=_change(interval, 1.0, is_higher_better) if interval else "unknown",
    )


def _error_difference(model: str | None, a: Sequence[RequestRecord], b: Sequence[RequestRecord]) -> Difference:
    """Difference of two shares with Newcombe's interval (1998, method 10), made of two Wilson intervals."""
    failed_a, failed_b = (sum(not record.is_ok for record in side) for side in (a, b))
    if not a or not b:
        return _errors(model, None, None, None, "unknown")
    share_a, share_b = failed_a / len(a), failed_b / len(b)
    (low_a, high_a), (low_b, high_b) = wilson_interval(failed_a, len(a)), wilson_interval(failed_b, len(b))
    _, low, high = unpaired_difference((share_a, low_a, high_a), (share_b, low_b, high_b))
    interval = Interval(low, high)
    return _errors(model, share_a, share_b, interval, _change(interval, 0.0, is_higher_better=False))


def _errors(
    model: str | None, a: float | None, b: float | None, interval: Interval | None, change: Change
) -> Difference:
    return Difference(
        metric="errors",
        model=model,
        is_higher_better=False,
        a=a,
        b=b,
        ratio=None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        change=change,
    )


def _change(interval: Interval, neutral: float, is_higher_better: bool) -> Change:
    if neutral in interval:
        return "no difference"
    return "better" if (interval.low > neutral) == is_higher_better else "worse"


def _warnings(a: RunResult, b: RunResult) -> Iterable[str]:
    """Warnings about the comparison's validity."""
    keys = sorted(a.workload.keys() | b.workload.keys())
    if changed := [key for key in keys if key != "url" and a.workload.get(key) != b.workload.get(key)]:
        yield f"The workloads differ in {', '.join(changed)}: differences may come from the load, not the server."
    if a.seed != b.seed:
        yield f"The seeds differ ({a.seed} and {b.seed}): the two runs did not send the same requests."
    if a.machine != b.machine:
        yield f"The machines differ: {a.machine!r} and {b.machine!r}."
    for label, run in (("A", a), ("B", b)):
        if run.generator.is_bottleneck:
            yield f"In {label} the generator was the bottleneck: its figures are the generator's, not the server's."
