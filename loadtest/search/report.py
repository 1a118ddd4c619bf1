"""Reports of `capacity` and `cliff`: JSON, Markdown and one plot each."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from loadtest.load.files import replace_text
from loadtest.load.records import LoadtestRecord
from loadtest.report.plots import plain_logarithm
from loadtest.report.slo import Slo
from loadtest.search.capacity import CapacityResult
from loadtest.search.cliff import Cliff, CliffPoint, Recommendation
from quality.svg import BLUE, GREEN, GREY, ORANGE, RED, plain, svg

_COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)


class CapacityReport(LoadtestRecord):
    """`capacity.json`."""

    schema_version: Literal[1] = 1
    url: str
    started_at: str
    machine: str
    slo: Slo
    workload: dict[str, object]
    result: CapacityResult


class CliffReport(LoadtestRecord):
    """`cliff.json`."""

    schema_version: Literal[1] = 1
    started_at: str
    machine: str
    workload: dict[str, object]
    factor: float
    cliffs: tuple[Cliff, ...]
    recommendation: Recommendation


def write_capacity(report: CapacityReport, folder: Path) -> Path:
    return _write(
        report, "capacity", capacity_markdown(report), svg(lambda f: draw_capacity(f, report), (8, 3.4)), folder
    )


def write_cliff(report: CliffReport, folder: Path) -> Path:
    return _write(report, "cliff", cliff_markdown(report), svg(lambda f: draw_cliffs(f, report), (8, 4.6)), folder)


def _write(report: BaseModel, name: str, markdown: str, plot: str, folder: Path) -> Path:
    """`<name>.json`, `.md` and `.svg`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    json_file = folder / f"{name}.json"
    replace_text(folder / f"{name}.svg", plot)
    replace_text(folder / f"{name}.md", markdown)
    replace_text(json_file, report.model_dump_json(indent=2) + "\n")
    return json_file


def capacity_markdown(report: CapacityReport) -> str:
    names = [objective.name for objective in report.result.runs[0].verdict.objectives] if report.result.runs else []
    rows = [
        f"| {run.rate:.2f} | {'holds' if run.verdict.is_met else 'fails'} | {run.verdict.num_requests} "
        f"| {run.verdict.goodput_per_s:.2f} | "
        + " | ".join(_value(objective.name, objective.value) for objective in run.verdict.objectives)
        + " |"
        for run in report.result.runs
    ]
    return "\n".join(
        [
            f"## Capacity within {report.slo}",
            "",
            f"{report.started_at}, {report.machine}. {report.result.reason}",
            "",
            "| requests/s | SLO | requests | goodput/s | " + " | ".join(names) + " |",
            "|---:|---|---:|---:|" + "---:|" * len(names),
            *rows,
            "",
        ]
    )


def cliff_markdown(report: CliffReport) -> str:
    chosen = report.recommendation
    rows = [
        f"| {p.max_loras} | {p.max_cpu_loras} | {p.working_set} | {p.num_requests} | {_value('ttft', p.ttft_p50_s)} "
        f"| {_value('ttft', p.ttft_p99_s)} | {_value('errors', p.cold_share)} | {_value('errors', p.error_share)} "
        f"| {p.output_tokens_per_s:.0f} | {_mark(p, cliff)} |"
        for cliff in report.cliffs
        for p in cliff.points
    ]
    return "\n".join(
        [
            "## Working set against max_loras and max_cpu_loras",
            "",
            f"{report.started_at}, {report.machine}.",
            "",
            f"Recommended: **max_loras {chosen.max_loras}, max_cpu_loras {chosen.max_cpu_loras}**. {chosen.reason}",
            "",
            "| max_loras | max_cpu_loras | adapters | requests | TTFT p50 | TTFT p99 | cold | errors | tok/s | |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
            *rows,
            "",
        ]
    )


def draw_capacity(figure: Any, report: CapacityReport) -> None:
    """Plot of each run's largest ratio of measured value to limit; above 1 it fails."""
    axes = plain(figure.subplots())
    for is_met, colour, label in ((True, GREEN, "holds"), (False, RED, "fails")):
        runs = [run for run in report.result.runs if run.verdict.is_met == is_met]
        loads = [max(_load(o.value, o.limit) for o in run.verdict.objectives) for run in runs]
        axes.plot([run.rate for run in runs], loads, "o", color=colour, label=label, markersize=7)
    axes.axhline(1, color=RED, linestyle="--", linewidth=1)
    if report.result.capacity is not None:
        axes.axvline(report.result.capacity, color=GREEN, linestyle=":", linewidth=1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_logarithm(axes.xaxis)
    plain_logarithm(axes.yaxis)
    axes.set_xlabel("requests per second")
    axes.set_ylabel("worst measured / limit")
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))


def draw_cliffs(figure: Any, report: CliffReport) -> None:
    """TTFT p50 with its interval, and the share of cold requests, over the working set; one line a setting."""
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    for index, cliff in enumerate(report.cliffs):
        _draw_cliff(plain(top), plain(bottom), cliff, _COLOURS[index % len(_COLOURS)])
    top.set_yscale("log")
    top.set_ylabel("TTFT p50, ms")
    plain_logarithm(top.yaxis)
    bottom.set_ylabel("cold, %")
    bottom.set_ylim(-4, 104)
    bottom.set_xlabel("adapters in use (working set)")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    top.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    figure.align_ylabels()


def _draw_cliff(top: Any, bottom: Any, cliff: Cliff, colour: str) -> None:
    known = [point for point in cliff.points if point.ttft_p50_s is not None]
    sizes = [point.working_set for point in known]
    middles = [1000 * (point.ttft_p50_s or 0) for point in known]
    below = [m - 1000 * (p.ttft_p50_low_s or 0) for m, p in zip(middles, known, strict=True)]
    above = [1000 * (p.ttft_p50_high_s or 0) - m for m, p in zip(middles, known, strict=True)]
    label = f"max_loras {cliff.max_loras}, max_cpu_loras {cliff.max_cpu_loras}"
    spans = [[max(0.0, span) for span in side] for side in (below, above)]
    top.errorbar(sizes, middles, yerr=spans, fmt="o-", color=colour, capsize=3, markersize=4, label=label)
    bottom.plot(sizes, [100 * point.cold_share for point in known], "o-", color=colour, markersize=4)
    if cliff.breaks_at is not None and cliff.carries is not None:
        top.axvline((cliff.carries + cliff.breaks_at) / 2, color=colour, linestyle="--", linewidth=1)


def _load(value: float | None, limit: float) -> float:
    """Measured over limit, kept where a logarithm can show it."""
    if value is None:
        return 100.0
    return min(100.0, max(0.01, value / limit if limit else (100.0 if value else 0.01)))


def _mark(point: CliffPoint, cliff: Cliff) -> str:
    return "cliff" if point.working_set == cliff.breaks_at else ""


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if name == "errors" else f"{1000 * value:.0f} ms"
