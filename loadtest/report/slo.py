"""Service level objectives: `ttft=500ms,itl=100ms,p=99,errors=1%`, and whether a run met them. Pure functions."""

import re
from collections.abc import Iterable, Sequence

from pydantic import Field

from loadtest.errors import SloError
from loadtest.load.records import LoadtestRecord, RequestRecord, RunResult
from loadtest.report.stats import METRICS, Metric, percentile, values_of

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)\s*(us|ms|s|m)")
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+)(%?)")
_EXAMPLE = "ttft=500ms,itl=100ms,e2e=5s,p=99,errors=1%"


class Slo(LoadtestRecord):
    """Limits on a percentile of each latency (seconds) and on the share of failed requests."""

    ttft_s: float | None = None
    itl_s: float | None = Field(None, description="Gaps between pieces of text, of all requests together.")
    tpot_s: float | None = None
    e2e_s: float | None = None
    percentile: float = Field(99.0, description="Which percentile the limits hold for, above 0, at most 100.")
    errors: float = Field(0.01, description="Largest share of failed requests, 0 to 1.")

    def limit_s(self, metric: Metric) -> float | None:
        limit: float | None = getattr(self, f"{metric}_s")
        return limit

    def __str__(self) -> str:
        limits = [f"{m}={_shown_s(limit)}" for m in METRICS if (limit := self.limit_s(m)) is not None]
        return ",".join([*limits, f"p={self.percentile:g}", f"errors={100 * self.errors:g}%"])


class SloObjective(LoadtestRecord):
    """One limit and what was measured: seconds, or a share for `errors`."""

    name: str = Field(description="`ttft p99`, `errors`…")
    limit: float
    value: float | None = Field(description="None where no request has the value; then the limit is missed.")
    is_met: bool


class SloVerdict(LoadtestRecord):
    """Whether a run met its SLO, and its goodput."""

    slo: Slo
    is_met: bool
    objectives: tuple[SloObjective, ...]
    num_requests: int
    num_good: int = Field(description="Requests that ended well within every limit.")
    goodput_share: float
    goodput_per_s: float
    reason: str


def parse_slo(text: str) -> Slo:
    """Read `ttft=500ms,itl=100ms,tpot=80ms,e2e=5s,p=99,errors=1%`; every part may be left out, but not all limits.

    Raises:
        SloError: A key is unknown or duplicate, a value has no unit, or a number is out of range.
    """
    fields: dict[str, float] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise SloError(f"{part!r} is not an objective. Write key=value, e.g. {_EXAMPLE!r}.")
        field, number = _parse_part(key.lower(), value)
        if field in fields:
            raise SloError(f"{key!r} occurs twice in {text!r}. Give each objective once.")
        fields[field] = number
    if not fields.keys() - {"percentile"}:
        raise SloError(f"{text!r} names no limit. Give at least one, e.g. {_EXAMPLE!r}.")
    return Slo(**fields)


def judge(result: RunResult, slo: Slo) -> SloVerdict:
    """Check a run against its SLO. Latencies cover successful requests; the others count as errors."""
    objectives = (*_latency_objectives(result.records, slo), _error_objective(result.records, slo))
    num_good = sum(is_good(record, slo) for record in result.records)
    num_requests = len(result.records)
    is_met = num_requests > 0 and all(objective.is_met for objective in objectives)
    return SloVerdict(
        slo=slo,
        is_met=is_met,
        objectives=objectives,
        num_requests=num_requests,
        num_good=num_good,
        goodput_share=num_good / num_requests if num_requests else 0.0,
        goodput_per_s=num_good / result.duration_s if result.duration_s > 0 else 0.0,
        reason=_reason(objectives, num_requests, result.generator.is_bottleneck),
    )


def is_good(record: RequestRecord, slo: Slo) -> bool:
    """Whether a request succeeded within every limit; its ITL is the SLO's percentile of its own gaps."""
    return record.is_ok and all(
        _request_value(record, metric, slo.percentile) <= limit
        for metric in METRICS
        if (limit := slo.limit_s(metric)) is not None
    )


def _request_value(record: RequestRecord, metric: Metric, q: float) -> float:
    values = values_of([record], metric)
    # An answer of one token has no gaps to be too long; one without any text has no first token in time.
    missing = float("inf") if metric == "ttft" else 0.0
    return percentile(values, q) if values else missing


def _latency_objectives(records: Sequence[RequestRecord], slo: Slo) -> Iterable[SloObjective]:
    for metric in METRICS:
        limit = slo.limit_s(metric)
        if limit is not None:
            values = values_of(records, metric)
            value = percentile(values, slo.percentile) if values else None
            name = f"{metric} p{slo.percentile:g}"
            yield SloObjective(name=name, limit=limit, value=value, is_met=value is not None and value <= limit)


def _error_objective(records: Sequence[RequestRecord], slo: Slo) -> SloObjective:
    share = sum(not record.is_ok for record in records) / len(records) if records else None
    return SloObjective(name="errors", limit=slo.errors, value=share, is_met=share is not None and share <= slo.errors)


def _reason(objectives: Sequence[SloObjective], num_requests: int, is_bottleneck: bool) -> str:
    if num_requests == 0:
        return "no request was sent"
    missed = [describe(objective) for objective in objectives if not objective.is_met]
    reason = "; ".join(missed) if missed else "every objective is met"
    return f"{reason} (the generator itself was late: see its figures)" if is_bottleneck else reason


def describe(objective: SloObjective) -> str:
    """`ttft p99 612 ms, limit 500 ms`."""
    show = _shown_share if objective.name == "errors" else _shown_s
    value = "has no value" if objective.value is None else show(objective.value)
    return f"{objective.name} {value}, limit {show(objective.limit)}"


def _parse_part(key: str, value: str) -> tuple[str, float]:
    """The field of `Slo` for a key, and the parsed value."""
    if key in METRICS:
        return f"{key}_s", _parse_duration_s(key, value)
    if key == "p":
        return "percentile", _parse_percentile(value)
    if key == "errors":
        return "errors", _parse_share(value)
    raise SloError(f"{key!r} is not an objective; known: ttft, itl, tpot, e2e, p and errors. E.g. {_EXAMPLE!r}.")


def _parse_duration_s(key: str, value: str) -> float:
    match = _DURATION.fullmatch(value)
    if match is None or float(match[1]) == 0:
        raise SloError(f"{key!r}: got {value!r}, wanted a duration above 0 with its unit (us, ms, s, m), e.g. 500ms.")
    return float(match[1]) * _SECONDS[match[2]]


def _parse_percentile(value: str) -> float:
    match = _NUMBER.fullmatch(value.removeprefix("p"))
    if match is None or not 0 < float(match[1]) <= 100:
        raise SloError(f"'p': got {value!r}, wanted a percentile above 0 and at most 100, e.g. p=99.")
    return float(match[1])


def _parse_share(value: str) -> float:
    match = _NUMBER.fullmatch(value)
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 1:
        raise SloError(f"'errors': got {value!r}, wanted a share such as 1% or 0.01.")
    return share


def _shown_s(seconds: float) -> str:
    return f"{seconds * 1000:.4g}ms" if seconds < 1 else f"{seconds:.4g}s"


def _shown_share(share: float) -> str:
    return f"{100 * share:.3g}%"
