"""`report.html`: one page without outside references; plots are inline SVG."""

from jinja2 import Environment
from markupsafe import Markup

from loadtest.load.records import RunResult
from loadtest.report.figures import Report
from loadtest.report.plots import adapters_height, draw_adapters, draw_cdfs, draw_heatmap, draw_timeline
from loadtest.report.slo import describe
from loadtest.report.stats import LatencySummary
from quality.svg import svg

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .45rem; text-align: left; white-space: nowrap } .num { text-align: right }
th { border-bottom: 2px solid #1d2733 } td { border-bottom: 1px solid #dde3ea } tr.all td { font-weight: 600 }
code { background: #f2f5f8; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere; white-space: normal }
svg { width: 100%; height: auto } small { color: #5c6b7a } .scroll { overflow-x: auto }
.met { color: #1f9d61 } .missed { color: #d64545 } .warning { border-left: 4px solid #e08e2b; padding-left: .8rem }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Load test {{ report.name }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{{ style }}</style></head><body>
<h1>Load test {{ report.name }}</h1>
<p>{{ report.started_at }} against <code>{{ report.url }}</code>, {{ report.machine }}.
{{ report.overall.num_requests }} requests in {{ "%.1f"|format(report.duration_s) }} s,
{{ "%.2f"|format(report.overall.requests_per_s) }} requests/s and
{{ "%.1f"|format(report.overall.output_tokens_per_s) }} output tokens/s answered.</p>
{% for warning in report.warnings %}<p class="warning">{{ warning }}</p>{% endfor %}
{% if report.slo %}<h2>SLO: <span class="{{ 'met' if report.slo.is_met else 'missed' }}">
{{ "met" if report.slo.is_met else "missed" }}</span></h2>
<p>Goodput: {{ "%.1f"|format(100 * report.slo.goodput_share) }}% of the requests met every limit,
{{ "%.2f"|format(report.slo.goodput_per_s) }} a second.</p>
<ul>{% for objective in report.slo.objectives %}<li class="{{ 'met' if objective.is_met else 'missed' }}">
{{ describe(objective) }}</li>{% endfor %}</ul>{% endif %}
<h2>Latency and throughput</h2>
<div class="scroll"><table><tr><th>model</th><th class="num">requests</th><th class="num">cold</th>
<th class="num">errors</th><th class="num">req/s</th><th class="num">tok/s</th>
{% for name in ("TTFT", "ITL", "TPOT", "e2e") %}<th class="num">{{ name }} p50</th><th class="num">p99</th>{% endfor %}
</tr>{% for s in rows %}<tr{% if s.model is none %} class="all"{% endif %}><td>{{ s.model or "all" }}</td>
<td class="num">{{ s.num_requests }}</td>
<td class="num">{{ s.num_cold if s.cold or s.warm else "–" }}</td>
<td class="num">{{ s.num_requests - s.num_ok }}</td><td class="num">{{ "%.2f"|format(s.requests_per_s) }}</td>
<td class="num">{{ "%.1f"|format(s.output_tokens_per_s) }}</td>
{% for latency in (s.latencies.ttft, s.latencies.itl, s.latencies.tpot, s.latencies.e2e) %}
<td class="num">{{ ms(latency, "p50_s") }}</td><td class="num">{{ ms(latency, "p99_s") }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p><small>Latencies in milliseconds, of requests that ended well, counted from the moment the workload wanted to send.
Cold: the request waited for its adapter to be loaded.</small></p>
{% if report.overall.errors %}<h2>Errors</h2><ul>
{% for kind, count in report.overall.errors.items() %}<li>{{ kind }}: {{ count }}</li>{% endfor %}</ul>{% endif %}
<h2>How long it took</h2>
{{ cdfs }}
{% if report.slo %}<p><small>Dashed: the limit of the SLO.</small></p>{% endif %}
<h2>Over the run</h2>{{ timeline }}
<h2>Per model</h2>{{ adapters }}
<h2>Model by time</h2>{{ heatmap }}
<h2>The generator</h2>
<p>It sent {{ "%.1f"|format(1000 * report.generator.lag_p50_s) }} ms late in the median,
{{ "%.1f"|format(1000 * report.generator.lag_p99_s) }} ms at the 99th percentile, and used
{{ "%.0f"|format(100 * report.generator.cpu_share) }}% of one core{% if report.generator.is_bottleneck %}:
<b class="missed">it was the bottleneck, so these figures are its own and not the server's</b>{% endif %}.</p>
<h2>Workload</h2>
<div class="scroll"><table>{% for key, value in report.workload.items() %}<tr><td>{{ key }}</td>
<td><code>{{ value }}</code></td></tr>{% endfor %}<tr><td>seed</td><td><code>{{ report.seed }}</code></td></tr></table>
</div></body></html>
"""


def render_html(report: Report, result: RunResult) -> str:
    slo = report.slo.slo if report.slo else None
    height = adapters_height(len(report.adapters))
    return (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            report=report,
            rows=(report.overall, *report.adapters),
            style=Markup(STYLE),
            describe=describe,
            ms=_ms,
            cdfs=Markup(svg(lambda figure: draw_cdfs(figure, result, slo), (9, 3.0))),
            timeline=Markup(svg(lambda figure: draw_timeline(figure, result), (9, 5.2))),
            adapters=Markup(svg(lambda figure: draw_adapters(figure, report.adapters), (9, height))),
            heatmap=Markup(svg(lambda figure: draw_heatmap(figure, result, report.adapters), (9, height))),
        )
    )


def _ms(latency: LatencySummary | None, field: str) -> str:
    return "–" if latency is None else f"{1000 * getattr(latency, field):.1f}"
