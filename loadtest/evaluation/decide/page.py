"""The decision in a terminal, and as one HTML page without outside references."""

from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from loadtest.evaluation.decide.report import CurveReport, DecisionReport, GainReport, WayReport
from loadtest.evaluation.report import Value
from loadtest.report.html import STYLE
from quality.learning_curve import CurvePoint, LearningCurve
from quality.svg import BLUE, GREY, ORANGE, plain, svg

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Fine-tune {{ report.domain }}?</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{{ style }} tr.chosen td { font-weight: 600 }</style></head><body>
<h1>Fine-tune {{ report.domain }}?</h1>
<p><b>{{ report.advice.summary }}</b> {{ report.advice.reason }}</p>
{% if report.advice.would_change %}<h2>What would change it</h2>
<ul>{% for line in report.advice.would_change %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% for note in report.notes %}<p class="warning">{{ note }}</p>{% endfor %}
<h2>Every way to answer</h2>
<p>{{ report.started_at }}, {{ report.num_items }} held-out questions of data set <code>{{ report.dataset }}</code>,
base <code>{{ report.base }}</code>{% if report.adapter %}, adapter <code>{{ report.adapter }}</code>{% endif %},
{{ report.concurrency }} concurrent requests, {{ report.machine }}.</p>
<div class="scroll"><table><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for cells in rows %}<tr{% if cells[0] == report.advice.choice %} class="chosen"{% endif %}>
{% for cell in cells %}<td{% if not loop.first %} class="num"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p><small>{{ footnote }}</small></p>
{% if report.curve %}<h2>Learning curve</h2>{{ plot }}
<div class="scroll"><table><tr><th class="num">rows</th><th class="num">steps</th><th>{{ report.metric }}</th>
<th>version</th></tr>{% for p in report.curve.points %}<tr><td class="num">{{ "{:,}".format(p.num_rows) }}</td>
<td class="num">{{ p.num_steps }}</td><td>{{ value(p.figure) }}, n {{ p.figure.n }}</td>
<td>{{ p.lora_name if p.is_existing else "trained for this curve" }}</td></tr>{% endfor %}</table></div>
<ul>{% for gain in report.curve.gains %}<li>{{ gain_line(gain) }}</li>{% endfor %}</ul>
<p><small>By training's own evaluation. Each size sees its rows as often as the recipe does, so fewer rows are fewer
steps. The band holds the 95% intervals of three forms of curve; one training a
size does not show how much trainings differ.</small></p>{% endif %}
</body></html>
"""


def render_decision(report: DecisionReport) -> str:
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        report=report,
        style=Markup(STYLE),
        head=_head(report),
        rows=[_cells(report, way) for way in report.ways],
        footnote=_footnote(report),
        plot=Markup(curve_svg(report, report.curve)) if report.curve else "",
        value=interval,
        gain_line=gain_line,
    )


def print_decision(console: Console, report: DecisionReport) -> None:
    """Print the table, the learning curve and the recommendation."""
    first, *others = _head(report)
    table = Table(first, title=f"{report.domain}: {report.num_items} held-out questions")
    for name in others:
        table.add_column(name, justify="right")
    for way in report.ways:
        table.add_row(*_cells(report, way), style="bold" if way.name == report.advice.choice else None)
    console.print(table)
    console.print(_footnote(report), markup=False, highlight=False)
    if report.curve:
        points = (f"{p.num_rows:,} rows {interval(p.figure)}" for p in report.curve.points)
        console.print(f"learning curve of {report.metric}: {'; '.join(points)}", markup=False, highlight=False)
        for gain in report.curve.gains:
            console.print(gain_line(gain), markup=False, highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(f"\n{report.advice.summary}", style="bold", markup=False, highlight=False)
    console.print(report.advice.reason, markup=False, highlight=False)
    for line in report.advice.would_change:
        console.print(f"What would change it: {line}", markup=False, highlight=False)


def interval(value: Value | None, sign: str = "") -> str:
    """`0.570 (0.472 to 0.663)`."""
    if value is None:
        return "–"
    return f"{value.value:{sign}.3f} ({value.ci_low:{sign}.3f} to {value.ci_high:{sign}.3f})"


def gain_line(gain: GainReport) -> str:
    return (
        f"{gain.factor:g} times the rows and steps ({gain.num_rows:,} rows): {gain.ci_low:+.2f} to {gain.ci_high:+.2f}"
    )


def curve_svg(report: DecisionReport, curve: CurveReport) -> str:
    """Points with intervals, the fit with its band up to four times the rows, and the ways without training."""

    def draw(figure: Any) -> None:
        axes = plain(figure.subplots())
        _draw_fit(axes, report, curve)
        _draw_lines(axes, report)
        for point in curve.points:
            own = point.figure
            errors = [[own.value - own.ci_low], [own.ci_high - own.value]]
            axes.errorbar([point.num_rows], [own.value], yerr=errors, fmt="o", color=BLUE, capsize=3)
        axes.set_xscale("log")
        sizes = [point.num_rows for point in curve.points] + [gain.num_rows for gain in curve.gains]
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("training rows")
        axes.set_ylabel(report.metric)
        axes.legend(frameon=False, fontsize=8)

    return svg(draw, (8, 3.4))


def _draw_fit(axes: Any, report: DecisionReport, curve: CurveReport) -> None:
    own = [CurvePoint(p.num_rows, p.figure.value, p.figure.ci_low, p.figure.ci_high, p.figure.n) for p in curve.points]
    fit = LearningCurve(own, curve.bounds, higher_is_better=report.higher_is_better)
    sizes = np.unique(np.geomspace(own[0].num_rows, 4 * own[-1].num_rows, 40).round().astype(int)).tolist()
    found = fit.fit(sizes)
    axes.fill_between(sizes, found.ci_low, found.ci_high, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(sizes, found.value, color=BLUE, label="adapter, fitted")


def _draw_lines(axes: Any, report: DecisionReport) -> None:
    """The base alone, and the best way without training."""
    sign = 1 if report.higher_is_better else -1
    first = report.ways[0]
    best = max((way for way in report.ways if not way.is_adapter), key=lambda way: sign * way.figure.value)
    for way, color in {first.name: (first, GREY), best.name: (best, ORANGE if best is not first else GREY)}.values():
        axes.axhline(way.figure.value, color=color, linestyle="--", linewidth=1, label=way.name)


def _head(report: DecisionReport) -> list[str]:
    cost = "s per 1,000" if report.price_per_hour is None else "cost per 1,000"
    return [
        "way", report.metric, "minus base", "valid format", "prompt tokens", "answer tokens", "TTFT p50", "e2e p50",
        "answers/s", cost,
    ]  # fmt: skip


def _cells(report: DecisionReport, way: WayReport) -> list[str]:
    cost = way.seconds_per_1000 if report.price_per_hour is None else way.cost_per_1000
    left_out = f", {way.num_left_out} left out" if way.num_left_out else ""
    return [
        way.name,
        interval(way.figure) + left_out,
        interval(way.difference, "+"),
        "–" if way.valid_format is None else f"{way.valid_format.value:.3f}",
        _shown(way.prompt_tokens, ".0f"),
        _shown(way.answer_tokens, ".1f"),
        "–" if way.ttft_p50_s is None else f"{1000 * way.ttft_p50_s:.0f} ms",
        "–" if way.e2e_p50_s is None else f"{1000 * way.e2e_p50_s:.0f} ms",
        _shown(way.answers_per_s, ".1f"),
        _shown(cost, ".0f" if report.price_per_hour is None else ".4g"),
    ]


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _footnote(report: DecisionReport) -> str:
    price = (
        "seconds of this machine per 1,000 answers"
        if report.price_per_hour is None
        else f"1,000 answers at {report.price_per_hour:g} an hour for the whole machine"
    )
    return (
        f"95% intervals; differences are paired by question. Times at {report.concurrency} concurrent requests; cost: "
        f"{price} at the throughput measured so."
    )
