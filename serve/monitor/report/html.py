"""The quality report as one page without outside references; plots are inline SVG."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from quality.svg import svg
from serve.monitor.report.evaluation import evaluation_table
from serve.monitor.report.figures import AdapterFigures, QualityReport
from serve.monitor.report.plots import (
    draw_agreement,
    draw_drift_steps,
    draw_general,
    draw_held_out,
    draw_scores,
    draw_signals,
    rows_height,
)
from serve.monitor.report.words import agreed, at, difference, kappa, last_drift_steps, percent, score, users

_MAX_DRIFT_STEPS = 8

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }
h2 { margin-top: 3rem; border-bottom: 1px solid #dde3ea } h3 { margin: 2rem 0 .2rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .5rem; text-align: left; vertical-align: top } .num { text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #1d2733; white-space: nowrap } td { border-bottom: 1px solid #dde3ea }
code { background: #f2f5f8; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere }
svg { width: 100%; height: auto } .matrix { max-width: 20rem } small { color: #5c6b7a }
.scroll { overflow-x: auto } .nowrap { white-space: nowrap } .bad { color: #d64545; font-weight: 600 }
.missing { border-left: 4px solid #e08e2b; padding-left: .8rem; font-size: 14px }
.missing p { margin: .2rem 0 }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Quality report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{{ style }}</style></head><body>
<h1>Quality report</h1>
<p>{{ report.created_at[:16]|replace("T", " ") }}, from <code>{{ report.store }}</code>. Times are UTC.</p>
{% if not report.adapters %}<p>No data yet: no adapter is published, and no server has stored samples.</p>
{% endif %}
{% for adapter in report.adapters %}{% set plots = plots_of(adapter) %}
<h2 id="{{ adapter.name }}">{{ adapter.name }}</h2>
<div class="scroll"><table><tr><th>version</th><th class="num">held-out now</th><th class="num">at publish</th>
<th class="num">samples</th><th class="num">with text</th><th class="num">labels</th><th>judge's mean score</th>
<th class="num">drift checks</th><th>last check</th></tr>
{% for one in adapter.versions %}<tr><td>{{ one.version or "base" }}</td>
<td class="num">{{ percent(one.held_out[-1].accuracy if one.held_out else none) }}</td>
<td class="num">{{ percent(one.published) }}</td><td class="num">{{ one.num_samples }}</td>
<td class="num">{{ one.num_with_text }}</td><td class="num">{{ one.num_labels }}</td>
<td class="nowrap">{% for s in one.scores %}{{ s.judge }}: {{ score(s.score) }}{% if not loop.last %}<br>{% endif %}
{% else %}–{% endfor %}</td><td class="num">{{ one.drift_steps|length or "–" }}</td>
<td>{% if not one.drift_steps %}–{% elif one.drift_steps[-1].is_drift %}<span class="bad">drift</span>{% else %}no drift
{% endif %}</td></tr>{% endfor %}</table></div>
{% if adapter.missing %}<div class="missing">{% for one in adapter.missing %}
<p><b>No {{ one.what }}.</b> {{ marked(one.how) }}</p>{% endfor %}</div>{% endif %}
{% set evaluated = evaluation_table(adapter) %}{% if evaluated %}<h3>Evaluation before publication</h3>
<div class="scroll"><table><tr><th>figure</th>{% for version in evaluated.versions %}<th class="num">version
{{ version }}</th>{% endfor %}</tr>
{% for key, cells in evaluated.rows %}<tr><td>{{ key }}</td>{% for cell in cells %}<td class="num">{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</table></div>
<p><small>By training, on the version's own data set, with 95% intervals: versions of different data sets were asked
different questions.{% if evaluated.num_left_out %} {{ evaluated.num_left_out }} more figures are in the manifests.
{% endif %}</small></p>{% endif %}
{% if plots.held_out %}<h3>Held-out questions</h3>{{ plots.held_out }}
<p><small>Mean score over all questions asked so far (by default the share of exact matches), with 95% Wilson
intervals. Dashed: at publish. Dotted: promotions to stable (green), rollbacks (red), trials (grey).</small></p>
{% endif %}
{% if plots.scores %}<h3>The judge</h3>{{ plots.scores }}
<p><small>Mean score with a conservative interval that treats scores as coin flips. Trust a judge
as far as the next table says.</small></p>{% endif %}
{% if adapter.judges %}<div class="scroll"><table><tr><th>judge</th><th class="num">grades</th>
<th class="num">with labels</th><th class="num">agree</th><th class="num">by chance</th><th>Cohen's kappa</th></tr>
{% for judge in adapter.judges %}<tr><td>{{ judge.judge }}</td><td class="num">{{ judge.num_grades }}</td>
<td class="num">{{ judge.agreement.n }}</td>
<td class="num">{{ agreed(judge.agreement.observed, judge) }}</td>
<td class="num">{{ agreed(judge.agreement.expected, judge) }}</td><td>{{ kappa(judge) }}</td></tr>
{% endfor %}</table></div>
{% for name, plot in plots.agreement %}<p>{{ name }} against human labels:</p>
<div class="matrix">{{ plot }}</div>{% endfor %}{% endif %}
{% if plots.drift_steps %}<h3>Drift</h3>{{ plots.drift_steps }}
<p><small>One mark per drift check of a window of traffic; red: it differs from the version's answers at publication.
</small></p><div class="scroll"><table><tr><th>at</th><th>version</th><th class="num">check</th>
<th class="num">answers</th><th>finding</th></tr>
{% for version, step in drift_steps(adapter) %}<tr><td class="nowrap">{{ at(step.at_s) }}</td><td>{{ version }}</td>
<td class="num">{{ step.number }}</td><td class="num">{{ step.num_exchanges }}</td>
<td{% if step.is_drift %} class="bad"{% endif %}>{{ step.reason or "no drift" }}</td></tr>{% endfor %}
</table></div>{% endif %}
{% if plots.signals %}<h3>Answer signals</h3>{{ plots.signals }}
<p><small>Means over the samples of each stretch of time; no reference answer is needed for these.</small></p>
{% endif %}
{% if plots.general %}<h3>Forgetting</h3>{{ plots.general }}
<p><small>Negative log-likelihood of general text: higher is worse. Dashed: what training measured.</small></p>
{% endif %}
{% if adapter.trial %}<h3>Trial</h3>
<p>{{ adapter.trial.canary }} against {{ adapter.trial.stable }} since
{{ adapter.trial.began_at[:16]|replace("T", " ") }}. Current verdict: <b>{{ adapter.trial.action }}</b>:
{{ adapter.trial.reason }}.</p>
<div class="scroll"><table><tr><th>comparison</th><th>state</th><th class="num">pairs</th>
<th class="num">users: canary and stable, of those needed</th><th class="num">difference</th>
<th class="num">worst allowed</th></tr>
{% for one in adapter.trial.comparisons %}<tr><td>{{ one.name }}</td><td>{{ one.state }}</td>
<td class="num">{{ one.num_pairs }}</td><td class="num">{{ users(one) }}</td><td class="num">{{ difference(one) }}</td>
<td class="num">{{ one.most_worse }}</td></tr>{% endfor %}</table></div>{% endif %}
{% if adapter.decisions %}<h3>Decisions</h3><div class="scroll"><table><tr><th>at</th><th>what</th><th>version</th>
<th>alias</th><th>why</th></tr>
{% for one in adapter.decisions|reverse %}<tr><td class="nowrap">{{ one.at[:16]|replace("T", " ") }}</td>
<td class="nowrap">{{ one.kind|replace("_", " ") }}{% if one.action %}: {{ one.action }}{% endif %}</td>
<td class="nowrap">{% if one.previous %}{{ one.previous }} → {% endif %}{{ one.version or "" }}</td>
<td>{{ one.alias or "" }}</td><td>{{ one.reason }}</td></tr>{% endfor %}</table></div>{% endif %}
{% endfor %}</body></html>
"""


def render_html(report: QualityReport) -> str:
    return (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            report=report,
            style=Markup(_STYLE),
            plots_of=_plots,
            evaluation_table=evaluation_table,
            percent=percent,
            score=score,
            agreed=agreed,
            users=users,
            difference=difference,
            kappa=kappa,
            drift_steps=partial(last_drift_steps, most=_MAX_DRIFT_STEPS),
            at=at,
            marked=_marked,
        )
    )


def _marked(text: str) -> Markup:
    """Our own words, with `code` in them."""
    pieces = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if i % 2 else piece for i, piece in enumerate(pieces)
    )


def _plots(adapter: AdapterFigures) -> dict[str, object]:
    """SVG by name; only of what there are figures for."""

    def plot(draw: Callable[[Any, AdapterFigures], None], field: str, height: float) -> Markup | None:
        has_any = any(getattr(version, field) for version in adapter.versions)
        return Markup(svg(lambda figure: draw(figure, adapter), (9, height))) if has_any else None

    def rows(field: str) -> float:
        return rows_height(sum(bool(getattr(version, field)) for version in adapter.versions))

    return {
        "held_out": plot(draw_held_out, "held_out", 3.0),
        "signals": plot(draw_signals, "signals", 4.4),
        "general": plot(draw_general, "general", 2.4),
        "drift_steps": plot(draw_drift_steps, "drift_steps", rows("drift_steps")),
        "scores": plot(draw_scores, "scores", rows("scores") + 0.3),
        "agreement": [
            (judge.judge, Markup(svg(partial(draw_agreement, judge=judge), (3.4, 3.2))))
            for judge in adapter.judges
            if judge.agreement.n
        ],
    }
