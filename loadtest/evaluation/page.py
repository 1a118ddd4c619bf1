"""The report as one HTML page without outside references."""

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, Template
from markupsafe import Markup

from loadtest.evaluation.report import EvaluationReport, JudgeNote, Paired, Value
from loadtest.report.html import STYLE

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation of {{ report.domain }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{{ style }} td.text { white-space: pre-wrap; max-width: 20rem; overflow-wrap: anywhere }</style></head><body>
<h1>Evaluation of {{ report.domain }}</h1>
<p>{{ report.started_at }}, {{ report.num_items }} held-out questions of data set <code>{{ report.dataset }}</code>
{%- if report.few_shot %}, with few-shot examples{% endif %}.
{%- if report.reference %} Expected answers are those of {{ report.reference }}.{% endif %}</p>
<h2>Figures</h2>
<div class="scroll"><table><tr><th>metric</th>{% for m in report.models %}<th>{{ m.served_by }}</th>
{% if not loop.first %}<th>minus {{ report.models[0].served_by }}</th><th class="num">p</th>{% endif %}{% endfor %}</tr>
{% for metric in report.models[0].metrics %}{% set row = loop.index0 %}<tr><td>{{ metric.metric }}</td>
{% for m in report.models %}{% set own = m.metrics[row] %}<td>{{ value(own.whole) }}
{%- if own.num_left_out %}
<small title="{{ own.left_out|join('; ') }}">{{ own.num_left_out }} left out</small>{% endif %}</td>
{% if own.difference %}<td>{{ value(own.difference) }}</td>
<td class="num">{{ p_text(own.difference.p) }}</td>{% endif %}
{% endfor %}</tr>{% endfor %}
<tr><td>tokens of prompt, answer</td>{% for m in report.models %}<td>{{ "%.0f"|format(m.prompt_tokens) }},
{{ "%.1f"|format(m.answer_tokens) }}</td>{% if not loop.first %}<td></td><td></td>{% endif %}{% endfor %}</tr>
<tr><td>time of an answer, median</td>{% for m in report.models %}
<td>{% if m.e2e_p50_s is none %}offline{% else %}{{ "%.0f"|format(1000 * m.e2e_p50_s) }} ms{% endif %}</td>
{% if not loop.first %}<td></td><td></td>{% endif %}{% endfor %}</tr></table></div>
<p><small>95% intervals: Wilson's for shares, bootstrap otherwise; differences are paired by question.</small></p>
{% for own in report.models[0].metrics %}{% if own.judge %}<p>{{ own.metric }}: {{ judge_text(own.judge) }}</p>
{% endif %}{% endfor %}
{% if report.models[0].metrics[0].by_slice %}<h2>By slice: {{ report.models[0].metrics[0].metric }}</h2>
<div class="scroll"><table><tr><th>slice</th>{% for m in report.models %}<th>{{ m.served_by }}</th>{% endfor %}</tr>
{% for name in report.models[0].metrics[0].by_slice %}<tr><td>{{ name }}</td>{% for m in report.models %}
<td>{{ value(m.metrics[0].by_slice[name]) }}</td>{% endfor %}</tr>{% endfor %}</table></div>{% endif %}
{% for m in report.models %}{% if m.confusion %}<h2>Confusion of {{ m.served_by }}</h2>
{% set answered = columns(m.confusion) %}
<div class="scroll"><table><tr><th></th><th>expected</th>{% for name in answered %}
<th class="num" title="{{ name }}">{{ loop.index if name in m.confusion else name }}</th>{% endfor %}</tr>
{% for wanted, row in m.confusion.items() %}{% set total = row.values()|sum %}
<tr><td class="num">{{ loop.index }}</td><td>{{ wanted }}</td>{% for name in answered %}{% set n = row.get(name, 0) %}
<td class="num" title="{{ wanted }} answered as {{ name }}"
style="background: rgba({{ "31,157,97" if name == wanted else "214,69,69" }},{{ "%.2f"|format(0.6 * n / total) }})">
{{- n or "" }}</td>{% endfor %}</tr>{% endfor %}</table></div>
<p><small>Rows: expected. Columns: answered, by the number of the row.</small></p>{% endif %}{% endfor %}
{% for m in report.models[1:] %}
{% for title, rows, n in (("wrong", m.wrong_alone, m.num_wrong_alone), ("right", m.right_alone, m.num_right_alone)) %}
{% if rows %}<h2>{{ m.served_by }} alone is {{ title }}: {{ rows|length }} of {{ n or rows|length }}</h2>
<div class="scroll"><table><tr><th>item</th><th>question</th><th>expected</th><th>{{ report.models[0].served_by }}</th>
<th>{{ m.served_by }}</th></tr>{% for item in rows %}<tr><td>{{ item.id }}</td><td class="text">{{ item.question }}</td>
<td class="text">{{ item.expected }}</td><td class="text">{{ item.first }}</td>
<td class="text">{{ item.second }}</td></tr>
{% endfor %}</table></div>{% endif %}{% endfor %}{% endfor %}
{% if report.robustness %}{% set found = report.robustness %}
<h2>Robustness: {{ found.metric }}</h2>
<p>{{ found.num_drawn }} held-out questions, drawn with seed {{ found.seed }}, and their perturbed copies.
Differences are perturbed minus unperturbed, paired by question.</p>
<div class="scroll"><table><tr><th>perturbation</th>{% for m in report.models %}<th>{{ m.served_by }}</th>
<th>minus unperturbed</th><th class="num">p</th>{% endfor %}<th>not asked</th></tr>
<tr><td>unperturbed</td>{% for own in found.plain %}<td>{{ value(own) }}</td><td></td><td></td>{% endfor %}
<td></td></tr>
{% for row in found.perturbations %}<tr><td>{{ row.perturbation }}</td>{% for own in row.models %}
<td>{{ value(own.score) }}{% if own.num_left_out %} <small>{{ own.num_left_out }} left out</small>{% endif %}</td>
{% if own.difference %}<td>{{ value(own.difference) }}</td><td class="num">{{ p_text(own.difference.p) }}</td>
{% else %}<td>another question</td><td></td>{% endif %}
{% else %}<td colspan="{{ 3 * report.models|length }}"></td>{% endfor %}
<td>{% if row.num_not_asked %}{{ row.num_not_asked }}: {{ row.not_asked_because }}{% endif %}</td></tr>
{% endfor %}</table></div>
{% for m in report.models %}{% set number = loop.index0 %}<h2>Worst perturbed questions of {{ m.served_by }}</h2>
<div class="scroll"><table><tr><th>perturbation</th><th>item</th><th>question</th><th>expected</th>
<th>answer unperturbed</th><th>answer</th></tr>{% for row in found.perturbations if row.models %}
{% for item in row.models[number].worst %}<tr>
<td>{{ row.perturbation }}{% if item.variant %}: {{ item.variant }}{% endif %}</td><td>{{ item.id }}</td>
<td class="text">{{ item.question }}</td><td class="text">{{ item.expected }}</td>
<td class="text">{{ item.plain_answer or "" }}</td><td class="text">{{ item.answer }}</td></tr>
{% endfor %}{% endfor %}</table></div>{% endfor %}{% endif %}
{% for m in report.models %}{% if m.served_by in plots %}<h2>{{ m.served_by }} before publication</h2>
<img style="max-width: 100%" src="{{ plots[m.served_by] }}" alt="Losses, and what was gained and lost">{% endif %}
{% endfor %}</body></html>
"""


def render_page(report: EvaluationReport, plots: Mapping[str, str] | None = None) -> str:
    """The page.

    Args:
        plots: Images of versions by `served_by`, from before their publication.
    """
    return _page().render(
        report=report,
        plots=plots or {},
        style=Markup(STYLE),
        value=value_text,
        p_text=p_text,
        judge_text=judge_text,
        columns=_columns,
    )


@cache
def _page() -> Template:
    return Environment(autoescape=True).from_string(_PAGE)


def _columns(confusion: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The expected classes, then other answers if there were any."""
    others = {name for row in confusion.values() for name in row} - confusion.keys()
    return [*confusion, *sorted(others)]


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def value_text(value: Value | Paired) -> str:
    """`0.570 (0.501 to 0.637), n 200`; a difference with its sign."""
    sign = "+" if isinstance(value, Paired) else ""
    return f"{value.value:{sign}.3f} ({value.ci_low:{sign}.3f} to {value.ci_high:{sign}.3f})" + (
        "" if isinstance(value, Paired) else f", n {value.n}"
    )


def judge_text(note: JudgeNote) -> str:
    """Who judged, and its agreement with people: `judged by x; kappa with people 0.62 (0.40 to 0.78), n 50`."""
    judge = f"judged by {note.judge}" if note.judge else "not judged"
    if not note.num_labels and note.num_people:
        return f"{judge}; agreement with people is unknown: of {note.num_people} human labels none has its judgement."
    if not note.num_labels:
        return f"{judge}; no human labels, so its agreement with people is unknown (`lorikeet eval export-sheet`)."
    if note.kappa is None or note.ci_low is None or note.ci_high is None:
        return f"{judge}; kappa does not exist: people and judge gave all {note.num_labels} answers the same grade."
    kind = "quadratically weighted kappa" if note.weights == "quadratic" else "kappa"
    interval = f"({note.ci_low:.3f} to {note.ci_high:.3f})"
    return f"{judge}; {kind} with people {note.kappa:.3f} {interval}, n {note.num_labels}."
