"""What a simulation found: `simulation.json`, `.md` and `.svg`, and the terminal's tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from loadtest.load.files import replace_text
from loadtest.report.plots import plain_logarithm
from loadtest.simulate.fleet import POLICIES
from loadtest.simulate.plan import FleetRow, SimulationReport
from quality.svg import BLUE, GREEN, GREY, ORANGE, RED, plain, svg

_COLOURS = dict(zip(POLICIES, (GREY, ORANGE, RED, BLUE), strict=True))


def write_simulation(report: SimulationReport, folder: Path) -> Path:
    """Write the three files; returns the Markdown one."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "simulation.svg", svg(lambda figure: draw(figure, report), (9, 3.6)))
    replace_text(folder / "simulation.json", report.model_dump_json(indent=2) + "\n")
    path = folder / "simulation.md"
    replace_text(path, markdown(report))
    return path


def markdown(report: SimulationReport) -> str:
    lines = [
        f"## Simulated fleets, calibrated on {report.calibrated_on}",
        "",
        f"{report.started_at}, {report.machine}. {report.demand}.",
        "",
        f"The simulation of the real run {report.repeated_on}:",
        "",
        "| figure | real | simulated | error |",
        "|---|---:|---:|---:|",
        *(f"| {own.name} | {own.real:.4g} | {own.simulated:.4g} | {own.error:+.0%} |" for own in report.repeated),
        "",
        "| servers | routing | tokens/s | TTFT p50 | TTFT p99 | loads | cold | refused | busiest server | SLO |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---|",
        *(f"| {' | '.join(_cells(row))} |" for row in report.rows),
        "",
        *_recommendations(report),
        "",
    ]
    return "\n".join(lines)


def tables(report: SimulationReport) -> Iterator[Table | str]:
    """For a terminal."""
    repeated = Table("figure", "real", "simulated", "error", title=f"The real run {report.repeated_on}, simulated")
    for own in report.repeated:
        repeated.add_row(own.name, f"{own.real:.4g}", f"{own.simulated:.4g}", f"{own.error:+.0%}")
    yield repeated
    fleets = Table(
        "servers", "routing", "tokens/s", "TTFT p50", "TTFT p99", "loads", "cold", "refused", "busiest", "SLO"
    )
    for row in report.rows:
        fleets.add_row(*_cells(row))
    yield fleets
    yield from _recommendations(report)


def draw(figure: Any, report: SimulationReport) -> None:
    """TTFT p99 and server seconds per 1,000 tokens by fleet size; the SLO as a dashed line."""
    left, right = figure.subplots(1, 2)
    for policy in POLICIES:
        rows = sorted((row for row in report.rows if row.policy == policy), key=lambda row: row.num_replicas)
        if not rows:
            continue
        sizes = [row.num_replicas for row in rows]
        left.plot(sizes, [row.ttft_p99_s for row in rows], "o-", color=_COLOURS[policy], label=policy, markersize=4)
        costs = [1000 * row.num_replicas / row.tokens_per_s for row in rows]
        right.plot(costs, [row.ttft_p99_s for row in rows], "o-", color=_COLOURS[policy], markersize=4)
    for axes in (left, right):
        plain(axes).set_yscale("log")
        axes.set_ylabel("TTFT p99, s")
        plain_logarithm(axes.yaxis)
        if report.slo is not None and report.slo.ttft_s is not None:
            axes.axhline(report.slo.ttft_s, color=GREEN, linestyle="--", linewidth=1)
    left.set_xscale("log")
    plain_logarithm(left.xaxis)
    left.set_xlabel("servers")
    right.set_xlabel("server seconds per 1,000 tokens")
    left.legend(frameon=False, fontsize=8)


def _cells(row: FleetRow) -> list[str]:
    return [
        str(row.num_replicas),
        row.policy,
        f"{row.tokens_per_s:,.0f}",
        f"{1000 * row.ttft_p50_s:,.0f} ms",
        f"{1000 * row.ttft_p99_s:,.0f} ms",
        f"{row.num_loads:,}",
        f"{row.cold_share:.1%}",
        f"{row.refused_share:.1%}",
        f"{row.busiest_share:.1%}",
        "" if row.is_met is None else "holds" if row.is_met else "fails",
    ]


def _recommendations(report: SimulationReport) -> list[str]:
    return [
        f"{policy}: {number} servers are the fewest within {report.slo}."
        if number is not None
        else f"{policy}: no fleet that was tried is within {report.slo}."
        for policy, number in report.recommended.items()
    ]
