"""Results of a benchmark: figures with a baseline of the same run, as a table and as JSON."""

from collections.abc import Sequence
from statistics import median
from typing import Literal

from pydantic import ConfigDict, Field
from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtest.bench.alternate import Alternated
from loadtest.load.records import LoadtestRecord


class BenchResult(LoadtestRecord):
    """One figure. `ratio` is value / baseline, from pairs measured one after the other."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str
    value: float
    unit: str
    baseline: float | None = Field(None, description="The same figure of the baseline, in this run.")
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = Field(None, description="95% bootstrap interval of the ratio.")
    target: str | None = Field(None, description="The project's target, in words; None if there is none.")
    is_pass: bool | None = Field(None, alias="pass", description="None without a target.")


def paired(
    name: str, unit: str, pair: Alternated, *, least: float | None = None, most: float | None = None
) -> BenchResult:
    """A figure beside its baseline; with `least` or `most`, what its ratio to the baseline must be."""
    target, is_pass = _target_of(pair.ratio, least, most)
    return BenchResult(
        name=name,
        value=pair.candidate,
        unit=unit,
        baseline=pair.baseline,
        ratio=pair.ratio,
        ratio_interval=(pair.ratio_interval.low, pair.ratio_interval.high),
        target=target,
        is_pass=is_pass,
    )


def compared(
    name: str,
    unit: str,
    baseline: float,
    value: float,
    *,
    least: float | None = None,
    most: float | None = None,
) -> BenchResult:
    """A figure that was measured once beside its baseline; `least` and `most` as in `paired`."""
    ratio = value / baseline
    target, is_pass = _target_of(ratio, least, most)
    return BenchResult(
        name=name, value=value, unit=unit, baseline=baseline, ratio=ratio, target=target, is_pass=is_pass
    )


def added(name: str, unit: str, pairs: Sequence[tuple[float, float]], *, below: float) -> BenchResult:
    """By how much the candidate was more than its baseline: the median of the rounds, and what it must stay below."""
    value = median(candidate - baseline for baseline, candidate in pairs)
    return BenchResult(name=name, value=value, unit=unit, target=f"below {below:g} {unit}", is_pass=value < below)


def _target_of(ratio: float, least: float | None, most: float | None) -> tuple[str | None, bool | None]:
    if least is not None:
        return f"ratio at least {least:g}", ratio >= least
    if most is not None:
        return f"ratio at most {most:g}", ratio <= most
    return None, None


class BenchReport(LoadtestRecord):
    """`lorikeet bench NAME --json PATH`."""

    schema_version: Literal[1] = 1
    bench: str
    machine: str
    started_at: str = Field(description="UTC, ISO 8601.")
    results: tuple[BenchResult, ...]

    @property
    def is_pass(self) -> bool:
        """Whether no target was missed."""
        return all(result.is_pass is not False for result in self.results)

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, by_alias=True) + "\n"


def results_table(report: BenchReport) -> Table:
    table = Table(title=f"bench {report.bench}, {report.machine}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("figure", overflow="fold")
    for column in ("value", "baseline", "ratio", "95% interval"):
        table.add_column(column, justify="right")
    table.add_column("target")
    for result in report.results:
        table.add_row(*_cells(result), style={True: "green", False: "bold red", None: ""}[result.is_pass])
    return table


def result_line(result: BenchResult) -> str:
    """A row as a line: each side as measured, the ratio and the target."""
    name, value, baseline, ratio, interval, target = _cells(result)
    known = {"baseline": baseline, "ratio": ratio, "interval": interval, "target": target}
    return "; ".join((f"{name}: {value}", *(f"{key} {text}" for key, text in known.items() if text)))


def _cells(result: BenchResult) -> tuple[str, ...]:
    low_high = result.ratio_interval
    return (
        result.name,
        f"{_number(result.value)} {result.unit}",
        "" if result.baseline is None else _number(result.baseline),
        "" if result.ratio is None else f"{result.ratio:.3f}",
        "" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}",
        "" if result.target is None else f"{result.target}: {'yes' if result.is_pass else 'NO'}",
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
