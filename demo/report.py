"""The demo's report for people: a table in the terminal, and `report.html` with plots."""

from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from demo.figures import DemoReport
from quality.svg import BLUE, GREEN, GREY, plain, svg

_COLOURS = {"base": GREY, "few_shot": BLUE, "adapter": GREEN}
_LABELS = {"base": "base, zero-shot", "few_shot": "base, 5 examples in the prompt", "adapter": "adapter"}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Lorikeet demo report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th, td { padding: .35rem .6rem; text-align: left }
th { border-bottom: 2px solid #1d2733 } td { border-bottom: 1px solid #dde3ea } .num { text-align: right }
code { background: #f2f5f8; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto } small { color: #5c6b7a } .scroll { overflow-x: auto }
</style></head><body>
<h1>One base model, {{ report.domains|length }} adapters, one engine</h1>
<p>{{ report.date }} on {{ report.machine }}; base <code>{{ report.base }}</code>;
{{ "%.0f"|format(report.seconds) }} s in all, the engine ready in {{ "%.0f"|format(report.engine_ready_s) }} s.
Every answer came through the OpenAI-compatible endpoint, {{ report.concurrency }} requests at a time.</p>
<h2>How good</h2>
{{ accuracy_plot }}
<div class="scroll"><table><tr><th>domain</th><th class="num">n</th><th>base, zero-shot</th><th>base, 5 examples</th>
<th>adapter</th><th class="num">valid format</th><th>served by</th><th class="num">parity error</th></tr>
{% for d in report.domains %}<tr><td>{{ d.domain }}</td><td class="num">{{ d.n }}</td>
<td>{{ share(d.base, d.base_interval) }}</td><td>{{ share(d.few_shot, d.few_shot_interval) }}</td>
<td><b>{{ share(d.adapter, d.adapter_interval) }}</b></td>
<td class="num">{{ "%.1f%%"|format(100 * d.valid_format) }}</td>
<td><code>{{ d.served_by }}</code></td><td class="num">{{ parity(d.parity_error_nats) }}</td></tr>{% endfor %}
</table></div>
<p><small>Exact match on held-out examples with 95% Wilson intervals. Parity error: mean difference between the served
and the trained log-probability of the golden answers, in nats per token.</small></p>
<h2>How fast</h2>
{{ speed_plot }}
<h2>All asked at the same time</h2>
<div class="scroll"><table><tr><th>model</th><th>served by</th><th>question</th><th>answer</th>
<th class="num">seconds</th></tr>
{% for a in report.answers %}<tr><td>{{ a.model }}</td><td><code>{{ a.served_by }}</code></td><td>{{ a.input }}</td>
<td><code>{{ a.answer }}</code></td><td class="num">{{ "%.2f"|format(a.seconds) }}</td></tr>{% endfor %}
</table></div>
<h2>Where the time went</h2>
{{ steps_plot }}
</body></html>
"""


def write_report(report: DemoReport, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    json_file, html_file = folder / "report.json", folder / "report.html"
    _replace(json_file, report.model_dump_json(indent=2) + "\n")
    _replace(html_file, render_html(report))
    return json_file, html_file


def render_html(report: DemoReport) -> str:
    """One page without outside references; plots are inline SVG."""
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        report=report,
        share=_share,
        parity=_parity,
        accuracy_plot=Markup(svg(partial(_draw_accuracy, report=report), (8, 3.4))),
        speed_plot=Markup(svg(partial(_draw_speed, report=report), (8, 3.0))),
        steps_plot=Markup(svg(partial(_draw_steps, report=report), (8, 0.6 + 0.32 * len(report.steps)))),
    )


def print_report(report: DemoReport, console: Console) -> None:
    """The table, and the seconds."""
    table = Table(title=f"Held-out exact match through the endpoint, {report.concurrency} requests at a time")
    for column in ("domain", "n", "base", "5-shot", "adapter", "valid format", "tokens/s", "TTFT p50"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for d in report.domains:
        table.add_row(
            d.domain,
            str(d.n),
            _share(d.base, d.base_interval),
            _share(d.few_shot, d.few_shot_interval),
            f"[bold green]{_share(d.adapter, d.adapter_interval)}",
            f"{d.valid_format:.1%}",
            f"{d.tokens_per_s:.0f}",
            f"{d.ttft_p50_s * 1000:.0f} ms",
        )
    console.print(table)


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f}% ({100 * interval[0]:.0f}–{100 * interval[1]:.0f})"


def _parity(error_nats: float | None) -> str:
    return "unknown" if error_nats is None else f"{error_nats:.3f}"


def _draw_accuracy(figure: Any, report: DemoReport) -> None:
    axes = plain(figure.subplots())
    width = 0.26
    for offset, kind in enumerate(("base", "few_shot", "adapter")):
        values = [100 * getattr(d, kind) for d in report.domains]
        ends = [getattr(d, f"{kind}_interval") for d in report.domains]
        spans = [[v - 100 * low for v, (low, _) in zip(values, ends, strict=True)],
                 [100 * high - v for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
        places = [index + (offset - 1) * width for index in range(len(values))]
        axes.bar(places, values, width, yerr=spans, capsize=3, color=_COLOURS[kind], label=_LABELS[kind])
    axes.set_xticks(range(len(report.domains)), [d.domain for d in report.domains])
    axes.set_ylabel("exact match, %")
    axes.set_ylim(0, 105)
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _draw_speed(figure: Any, report: DemoReport) -> None:
    left, right = figure.subplots(1, 2)
    names = [d.domain for d in report.domains]
    for axes, title, field, factor in (
        (left, "tokens per second", "tokens_per_s", 1),
        (right, "TTFT p50, ms", "ttft_p50_s", 1000),
    ):
        plain(axes)
        for offset, (prefix, kind) in enumerate((("base_", "base"), ("", "adapter"))):
            values = [factor * getattr(d, prefix + field) for d in report.domains]
            axes.bar(
                [i + (offset - 0.5) * 0.36 for i in range(len(names))], values, 0.36, color=_COLOURS[kind], label=kind
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_title(title, fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=2, loc="outside upper center")


def _draw_steps(figure: Any, report: DemoReport) -> None:
    axes = plain(figure.subplots())
    axes.grid(visible=False)
    names = [step.name for step in report.steps]
    bars = axes.barh(names, [step.seconds for step in report.steps], color=BLUE)
    axes.bar_label(bars, fmt="%.0f s", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
