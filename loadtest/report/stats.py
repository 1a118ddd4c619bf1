"""Statistics of a run: latencies, throughput and errors, in total, per model, cold and warm. Pure functions.

A percentile is the linear interpolation between the two nearest sorted values (Hyndman and Fan's type 7: the default of
numpy and of R, and what `vllm bench serve` reports). Latencies are of requests that ended well; failed ones are counted
by kind. Throughput is what ended well, over the duration of the run.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from pydantic import Field

from loadtest.load.records import ErrorKind, LoadtestRecord, RequestRecord, RunResult

Metric = Literal["ttft", "itl", "tpot", "e2e"]
METRICS: tuple[Metric, ...] = ("ttft", "itl", "tpot", "e2e")


class LatencySummary(LoadtestRecord):
    """One latency, in seconds."""

    n: int = Field(description="Values: requests, or gaps between pieces of text for ITL.")
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float


class Latencies(LoadtestRecord):
    """None where no request has the value: an answer of one token has no ITL and no TPOT."""

    ttft: LatencySummary | None
    itl: LatencySummary | None
    tpot: LatencySummary | None
    e2e: LatencySummary | None


class TrafficSummary(LoadtestRecord):
    """A set of requests: all of a run, or those that asked for one model."""

    model: str | None = Field(description="The model reference that was asked for; None: all.")
    num_requests: int
    num_ok: int
    num_cold: int = Field(description="Requests that ended well and waited for their adapter to be loaded.")
    errors: dict[ErrorKind, int]
    requests_per_s: float
    output_tokens_per_s: float
    num_output_tokens: int
    latencies: Latencies
    cold: Latencies | None = Field(description="None where the server names no cold request.")
    warm: Latencies | None = Field(description="None where the server does not say what is cold.")

    @property
    def error_share(self) -> float:
        return 1 - self.num_ok / self.num_requests if self.num_requests else 0.0


class Bucket(LoadtestRecord):
    """One stretch of a run. Requests count where they were meant to be sent, answers where they ended."""

    start_s: float
    width_s: float
    num_intended: int
    num_ok: int
    num_errors: int
    output_tokens: int
    ttft_p50_s: float | None = Field(description="Of requests that were meant to be sent in this stretch.")
    ttft_p99_s: float | None
    e2e_p50_s: float | None


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile, q from 0 to 100.

    Raises:
        ValueError: There are no values, or q lies outside 0 to 100.
    """
    if not len(values):
        raise ValueError("The percentile of an empty list is undefined; check for it first.")
    if not 0 <= q <= 100:
        raise ValueError(f"A percentile must lie between 0 and 100; got {q}.")
    return float(np.percentile(np.asarray(values), q))


def ttft_of(record: RequestRecord) -> tuple[float, ...]:
    return () if record.ttft_s is None else (record.ttft_s,)


def itl_of(record: RequestRecord) -> tuple[float, ...]:
    return record.itl_s


def tpot_of(record: RequestRecord) -> tuple[float, ...]:
    return () if record.tpot_s is None else (record.tpot_s,)


def e2e_of(record: RequestRecord) -> tuple[float, ...]:
    return (record.e2e_s,)


_VALUES: dict[Metric, Callable[[RequestRecord], tuple[float, ...]]] = {
    "ttft": ttft_of,
    "itl": itl_of,
    "tpot": tpot_of,
    "e2e": e2e_of,
}


def values_of(records: Iterable[RequestRecord], metric: Metric) -> list[float]:
    """A metric's values, in seconds, over the requests that ended well."""
    return list(chain.from_iterable(_VALUES[metric](record) for record in records if record.is_ok))


def summarize(result: RunResult) -> TrafficSummary:
    return summarize_records(result.records, result.duration_s)


def summarize_by_model(result: RunResult) -> tuple[TrafficSummary, ...]:
    """One summary per model reference, the most requested first."""
    counts = Counter(record.model for record in result.records)
    return tuple(
        summarize_records([r for r in result.records if r.model == model], result.duration_s, model)
        for model, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def summarize_records(records: Sequence[RequestRecord], duration_s: float, model: str | None = None) -> TrafficSummary:
    done = [record for record in records if record.is_ok]
    num_tokens = sum(record.num_completion_tokens for record in done)
    is_temperature_known = any(record.is_cold is not None for record in done)
    cold = [record for record in done if record.is_cold]
    warm = [record for record in done if record.is_cold is False]
    return TrafficSummary(
        model=model,
        num_requests=len(records),
        num_ok=len(done),
        num_cold=len(cold),
        errors=error_counts(records),
        requests_per_s=_rate(len(done), duration_s),
        output_tokens_per_s=_rate(num_tokens, duration_s),
        num_output_tokens=num_tokens,
        latencies=latencies(done),
        cold=latencies(cold) if cold else None,
        warm=latencies(warm) if is_temperature_known and warm else None,
    )


def latencies(records: Iterable[RequestRecord]) -> Latencies:
    kept = list(records)
    return Latencies(**{metric: summarize_latency(values_of(kept, metric)) for metric in METRICS})


def summarize_latency(values: Sequence[float]) -> LatencySummary | None:
    """Summary of values in seconds; None if there are none."""
    if not values:
        return None
    p50, p90, p95, p99 = (float(value) for value in np.percentile(np.asarray(values), (50, 90, 95, 99)))
    return LatencySummary(n=len(values), mean_s=float(np.mean(values)), p50_s=p50, p90_s=p90, p95_s=p95, p99_s=p99)


def error_counts(records: Iterable[RequestRecord]) -> dict[ErrorKind, int]:
    """Failed requests by kind, the most frequent first."""
    return dict(Counter(record.error for record in records if record.error is not None).most_common())


def bucket_width_s(duration_s: float, most: int = 60) -> float:
    """A round bucket width that gives at most this many buckets."""
    widths = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
    return next((width for width in widths if duration_s <= width * most), duration_s / most)


def timeline(records: Sequence[RequestRecord], duration_s: float, width_s: float) -> tuple[Bucket, ...]:
    """The run in stretches of `width_s` seconds; what lies outside counts in the first or last one.

    Raises:
        ValueError: `width_s` is not positive.
    """
    if width_s <= 0:
        raise ValueError(f"A bucket must be wider than 0 s; got {width_s}.")
    num_buckets = max(1, int(np.ceil(duration_s / width_s)))
    begun: list[list[RequestRecord]] = [[] for _ in range(num_buckets)]
    ended: list[list[RequestRecord]] = [[] for _ in range(num_buckets)]
    for record in records:
        begun[_place(record.intended_s, width_s, num_buckets)].append(record)
        ended[_place(record.ended_s, width_s, num_buckets)].append(record)
    return tuple(_bucket(i * width_s, width_s, begun[i], ended[i]) for i in range(num_buckets))


def _bucket(start_s: float, width_s: float, begun: list[RequestRecord], ended: list[RequestRecord]) -> Bucket:
    done = [record for record in ended if record.is_ok]
    ttfts, e2es = values_of(begun, "ttft"), values_of(begun, "e2e")
    return Bucket(
        start_s=start_s,
        width_s=width_s,
        num_intended=len(begun),
        num_ok=len(done),
        num_errors=len(ended) - len(done),
        output_tokens=sum(record.num_completion_tokens for record in done),
        ttft_p50_s=percentile(ttfts, 50) if ttfts else None,
        ttft_p99_s=percentile(ttfts, 99) if ttfts else None,
        e2e_p50_s=percentile(e2es, 50) if e2es else None,
    )


def _place(time_s: float, width_s: float, num_buckets: int) -> int:
    return min(max(int(time_s // width_s), 0), num_buckets - 1)


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
