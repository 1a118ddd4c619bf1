"""The demo's report: a table in the terminal, and `report.html` with plots."""

from functools import partial
from pathlib import Path
from statistics import median

from jinja2 import Environment
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.progress import print_line, span
from demo.asking import NARROW
from demo.evaluated import rows_of
from demo.figures import DemoReport, DomainFigures
from demo.plots import draw_accuracy, draw_speed, draw_timeline, timeline_steps
from quality.svg import svg

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Lorikeet demo report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th, td { padding: .35rem .6rem; text-align: left }
th { border-bottom: 2px solid #1d2733 } td { border-bottom: 1px solid #dde3ea }
.num { text-align: right } .whole { white-space: nowrap }
code { background: #f2f5f8; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere }
.better { color: #2e8b57 } .worse { color: #d64545; font-weight: 600 }
svg { max-width: 100%; height: auto } small { color: #5c6b7a } .scroll { overflow-x: auto }
</style></head><body>
<h1>One base model, {{ report.domains|length }} adapters, one engine</h1>
<p>{{ report.date }} on {{ report.machine }}; base <code>{{ report.base }}</code>.
The first answer of an adapter came after <b>{{ span(report.first_adapter_answer_s) }}</b>, total time
<b>{{ span(report.seconds) }}</b>. Every answer came through the OpenAI-compatible endpoint of one server that was never
restarted; in evaluations, {{ report.concurrency }} requests at a time.</p>
<h2>Trained and swapped in while the server runs</h2>
{{ timeline_plot }}
<p>The server started before the adapters were trained, and was ready in {{ "%.0f"|format(report.engine_ready_s) }} s.
{{ meanwhile }}</p>
<div class="scroll"><table><tr><th>adapter</th><th>served by</th><th class="num">published after</th>
<th class="num">first answer after</th><th>question</th><th>answer</th></tr>
{% for s in report.swaps %}<tr><td>{{ s.adapter }}</td><td class="whole"><code>{{ s.served_by }}</code></td>
<td class="num">{{ span(s.published_s) if s.is_trained_here else "an earlier demo" }}</td>
<td class="num">{{ span(s.answer_s) }}</td>
<td>{{ s.input }}</td><td><code>{{ s.answer }}</code></td></tr>{% endfor %}
</table></div>
<h2>How good</h2>
{{ accuracy_plot }}
<div class="scroll"><table><tr><th>domain</th><th>base, zero-shot</th><th class="num">n</th><th>base, 5 examples</th>
<th class="num">n</th><th>adapter</th><th class="num">n</th><th>gain over the base</th><th>over examples</th>
<th class="num">valid format</th><th class="num">parity error</th></tr>
{% for d in report.domains %}<tr><td>{{ d.domain }}</td>
<td class="whole">{{ share(d.base, d.base_interval) }}</td><td class="num">{{ d.base_n }}</td>
<td class="whole">{{ share(d.few_shot, d.few_shot_interval) }}</td><td class="num">{{ d.few_shot_n }}</td>
<td class="whole"><b>{{ share(d.adapter, d.adapter_interval) }}</b></td><td class="num">{{ d.n }}</td>
<td class="whole">{{ points(d.gain, d.gain_interval) }}</td>
<td class="whole">{{ points(d.few_shot_gain, d.few_shot_gain_interval) }}</td>
<td class="num">{{ "%.1f%%"|format(100 * d.valid_format) }}</td>
<td class="num">{{ parity(d.parity_error_nats) }}</td></tr>{% endfor %}
</table></div>
<p><small>Exact match on held-out examples with 95% intervals. The adapter is asked all of them (Wilson intervals). The
base is asked the same ones in the same order until the interval of the gain is at most {{ narrow }} points wide; its
intervals and those of the gains hold at every number of questions at once, so that one may stop at any
(Waudby-Smith and Ramdas, 2024). A gain counts the questions that both were asked. Parity error: mean difference between
the served and the trained log-probability of the golden answers, in nats per token.</small></p>
<h2>By slice, under perturbation, and what was lost</h2>
<p>By training, before each version was published: base and adapter on the same questions. Green and red: the whole 95%
interval of the difference, paired by question, is on the better or the worse side. Robustness is read beside
<code>unperturbed</code>, the same questions as they stand.</p>
{% for d in report.domains %}<h3>{{ d.served_by }}</h3>{% set rows = rows_of(d.evaluated, with_classes=true) %}
{% if rows %}<div class="scroll"><table><tr><th>what</th><th>questions or text</th><th>metric</th>
<th class="num">n</th><th>base</th><th>adapter</th><th>adapter minus base</th></tr>
{% for row in rows %}<tr><td>{{ row.group }}</td><td>{{ row.part }}</td><td>{{ row.metric }}</td>
<td class="num">{{ row.n }}</td><td class="whole">{{ row.base }}</td><td class="whole">{{ row.adapter }}</td>
<td class="whole {{ row.change }}">{{ row.difference }}</td></tr>{% endfor %}
</table></div>{% else %}<p>An earlier version, published without these figures: <code>lorikeet demo --fresh</code>
trains anew.</p>{% endif %}{% endfor %}
<h2>How fast</h2>
{{ speed_plot }}
<h2>All asked at the same time</h2>
<div class="scroll"><table><tr><th>model</th><th>served by</th><th>question</th><th>answer</th>
<th class="num">seconds</th></tr>
{% for a in report.answers %}<tr><td>{{ a.model }}</td><td class="whole"><code>{{ a.served_by }}</code></td>
<td>{{ a.input }}</td>
<td><code>{{ a.answer }}</code></td><td class="num">{{ "%.2f"|format(a.seconds) }}</td></tr>{% endfor %}
</table></div>
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
        points=_points,
        narrow=round(100 * NARROW),
        parity=_parity,
        span=span,
        rows_of=rows_of,
        accuracy_plot=Markup(svg(partial(draw_accuracy, report=report), (8, 3.4))),
        speed_plot=Markup(svg(partial(draw_speed, report=report), (8, 3.0))),
        timeline_plot=Markup(svg(partial(draw_timeline, report=report), (9, 1.2 + 0.3 * len(timeline_steps(report))))),
        meanwhile=_meanwhile(report),
    )


def print_report(report: DemoReport, console: Console) -> None:
    """The table of answers, with the number of questions beside each share."""
    table = Table(title=f"Held-out exact match through the endpoint, {report.concurrency} requests at a time")
    for column in ("domain", "base", "5-shot", "adapter", "gain", "valid", "tokens/s", "TTFT p50"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for d in report.domains:
        table.add_row(
            d.domain,
            f"{_share(d.base, d.base_interval)}\nof {d.base_n}",
            f"{_share(d.few_shot, d.few_shot_interval)}\nof {d.few_shot_n}",
            Text.assemble((_share(d.adapter, d.adapter_interval), "bold green"), f"\nof {d.n}"),
            f"{_points(d.gain, d.gain_interval)}\non {d.base_n}",
            f"{d.valid_format:.1%}",
            f"{d.tokens_per_s:.0f}",
            f"{d.ttft_p50_s * 1000:.0f} ms",
        )
    console.print(table)
    for d in report.domains:
        if d.evaluated:
            console.print(_evaluated(d))
    print_line(console, _meanwhile(report))


def _evaluated(domain: DomainFigures) -> Table:
    """Slices, robustness and forgetting; the page has the classes too."""
    table = Table(title=f"{domain.served_by} before it was published, by training")
    for column in ("what", "questions or text", "metric", "n", "base", "adapter", "adapter minus base"):
        table.add_column(column, justify="right" if column == "n" else "left")
    styles = {"better": "green", "worse": "red", "": ""}
    for row in rows_of(domain.evaluated, with_classes=False):
        difference = Text(row.difference, style=styles[row.change])
        table.add_row(row.group, Text(row.part), row.metric, str(row.n), row.base, row.adapter, difference)
    return table


def _meanwhile(report: DemoReport) -> str:
    if not report.meanwhile:
        return "Nothing was trained."
    seconds = median(one.seconds for one in report.meanwhile)
    num_failed = sum(not one.is_ok for one in report.meanwhile)
    return (
        f"While adapters trained on the same cores, the server was asked {len(report.meanwhile)} questions, one at a "
        f"time: {num_failed} failed, and half of the answers took less than {seconds:.1f} s."
    )


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f}% ({100 * interval[0]:.0f}–{100 * interval[1]:.0f})"


def _points(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:+.0f} ({100 * interval[0]:+.0f} to {100 * interval[1]:+.0f})"


def _parity(error_nats: float | None) -> str:
    return "unknown" if error_nats is None else f"{error_nats:.3f}"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
