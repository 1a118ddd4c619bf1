"""A run's report: `report.json` for programs, `report.html` and `report.md` for people, a table for the terminal."""

from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtest.load.files import replace_text
from loadtest.load.records import RunResult
from loadtest.report.figures import Report, make_report
from loadtest.report.html import render_html
from loadtest.report.slo import Slo, SloVerdict, describe
from loadtest.report.stats import LatencySummary, TrafficSummary

_COLUMNS = ("model", "requests", "cold", "errors", "req/s", "tok/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99",
            "e2e p50", "e2e p99")  # fmt: skip


@dataclass(frozen=True)
class ReportPaths:
    json_file: Path
    html_file: Path
    markdown_file: Path


def write_reports(result: RunResult, slo: Slo | None, folder: Path) -> ReportPaths:
    """Write `report.json`, `report.html` and `report.md` into a folder, which is created if missing."""
    report = make_report(result, slo)
    folder.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(folder / "report.json", folder / "report.html", folder / "report.md")
    replace_text(paths.json_file, report.model_dump_json(indent=2) + "\n")
    replace_text(paths.html_file, render_html(report, result))
    replace_text(paths.markdown_file, summary_markdown(report))
    return paths


def summary_markdown(report: Report) -> str:
    """A heading, the table of models, and the SLO's verdict."""
    lines = [
        f"## Load test {report.name}",
        "",
        f"{report.started_at}, {report.machine}; {report.overall.num_requests} requests in {report.duration_s:.1f} s, "
        f"seed {report.seed}.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---|" + "---:|" * (len(_COLUMNS) - 1),
        *("| " + " | ".join(_cells(summary)) + " |" for summary in _rows(report)),
        "",
    ]
    if report.slo:
        lines += [*(f"- {line}" for line in verdict_lines(report.slo)), ""]
    return "\n".join([*lines, *(f"- Warning: {warning}" for warning in report.warnings)]).rstrip() + "\n"


def summary_table(report: Report) -> Table:
    """The same for the terminal, in 80 columns."""
    title = f"{report.overall.num_requests} requests in {report.duration_s:.1f} s; latencies p50/p99 in ms"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for column in ("n", "cold", "errors", "req/s", "tok/s", "TTFT", "ITL", "e2e"):
        table.add_column(column, justify="right")
    for summary in _rows(report):
        model, *counts, ttft_p50, ttft_p99, itl_p50, itl_p99, e2e_p50, e2e_p99 = _cells(summary, num_decimals=0)
        pairs = (f"{ttft_p50}/{ttft_p99}", f"{itl_p50}/{itl_p99}", f"{e2e_p50}/{e2e_p99}")
        table.add_row(model, *counts, *pairs, style="bold" if summary.model is None else "")
    return table


def verdict_lines(verdict: SloVerdict) -> tuple[str, ...]:
    """Lines on an SLO, the verdict first."""
    return (
        f"SLO {verdict.slo}: {'met' if verdict.is_met else 'missed'}; "
        f"goodput {100 * verdict.goodput_share:.1f}% of requests, {verdict.goodput_per_s:.2f} a second",
        *(f"{'met' if objective.is_met else 'MISSED'}: {describe(objective)}" for objective in verdict.objectives),
    )


def _rows(report: Report) -> tuple[TrafficSummary, ...]:
    """All traffic, then each model if there are several."""
    return (report.overall, *report.adapters) if len(report.adapters) > 1 else (report.overall,)


def _cells(summary: TrafficSummary, num_decimals: int = 1) -> tuple[str, ...]:
    latencies = summary.latencies
    return (
        summary.model or "all",
        str(summary.num_requests),
        str(summary.num_cold) if summary.cold or summary.warm else "–",
        str(summary.num_requests - summary.num_ok),
        f"{summary.requests_per_s:.2f}",
        f"{summary.output_tokens_per_s:.1f}",
        *_pair_ms(latencies.ttft, num_decimals),
        *_pair_ms(latencies.itl, num_decimals),
        *_pair_ms(latencies.e2e, num_decimals),
    )


def _pair_ms(latency: LatencySummary | None, num_decimals: int) -> tuple[str, str]:
    """p50 and p99 in milliseconds."""
    if latency is None:
        return "–", "–"
    return f"{1000 * latency.p50_s:.{num_decimals}f}", f"{1000 * latency.p99_s:.{num_decimals}f}"
