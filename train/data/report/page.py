"""The report as one HTML page without scripts and outside references, in light and dark."""

from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from config.dataset import SPLITS
from config.private import make_private_folder, write_private
from train.data.report.bars import BarRow, bar_rows, histogram_bars, step_bars
from train.data.report.figures import BalanceFigures, DataReport, LanguageFigures
from train.data.report.shown import num_rows, shown_text
from train.data.steps import MAX_LISTED

_MAX_CLASSES = 30

_STYLE = """
:root { color-scheme: light dark; --text: #1d2733; --soft: #5c6b7a; --line: #dde3ea; --page: #fff;
  --code: #f2f5f8; --kept: #5b8def; --changed: #e08e2b; --dropped: #d64545; --learnt: #137a49; --learnt-page: #ddf4e7 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e9ef; --soft: #9aa5b1; --line: #36414d;
  --page: #14191f; --code: #1f262e; --kept: #6f9bf2; --changed: #eda651; --dropped: #ea6a6a;
  --learnt: #6fdca4; --learnt-page: #12382a } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
body { color: var(--text); background: var(--page) }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { border-bottom: 2px solid var(--text) } .num { text-align: right }
.where { overflow-wrap: anywhere; min-width: 8rem }
.text { white-space: pre-wrap; overflow-wrap: anywhere } .scroll { overflow-x: auto }
small, .soft { color: var(--soft) }
code, pre { background: var(--code); border-radius: 3px } code { padding: .1rem .3rem; overflow-wrap: anywhere }
pre { padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere } pre .context { color: var(--soft) }
pre .learnt { color: var(--learnt); background: var(--learnt-page); font-weight: 600 }
svg { width: 100%; height: auto; font-size: 13px } svg text { fill: var(--text) } svg .label { text-anchor: end }
svg .tick { fill: var(--soft) } .kept { fill: var(--kept) } .changed { fill: var(--changed) }
.dropped { fill: var(--dropped) } .train { fill: var(--kept) } .validation { fill: var(--changed) }
.test { fill: var(--learnt) } .axis { stroke: var(--line) } .limit { stroke: var(--dropped); stroke-dasharray: 5 4 }
.note { border-left: 4px solid var(--changed); padding-left: .8rem } summary { cursor: pointer; font-weight: 600 }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px }
.key.kept, .key.train { background: var(--kept) } .key.changed, .key.validation { background: var(--changed) }
.key.dropped { background: var(--dropped) } .key.test { background: var(--learnt) }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data set {{ report.domain }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{{ style }}</style></head><body>
<h1>Data set {{ report.domain }}</h1>
<p>{{ report.description|shown }}</p>
<div class="scroll"><table>
<tr><td>source</td><td class="where">{{ report.source|shown }}</td></tr>
<tr><td>licence</td><td>{{ (report.licence or "unknown")|shown }}</td></tr>
<tr><td>type</td><td>{{ report.type }}</td></tr>
<tr><td>version</td><td><code>{{ report.version or report.dataset_sha256[:12] }}</code>, {{ report.created_at }}
</td></tr>
<tr><td>rows</td><td>{% for split, count in report.num_rows.items() %}{{ "{:,}".format(count) }} {{ split }}
{%- if not loop.last %}, {% endif %}{% endfor %}</td></tr>
<tr><td>out of scope</td><td>{{ "{:,}".format(report.num_out_of_scope) }}</td></tr>
<tr><td>synthetic</td><td>{{ "{:,}".format(report.num_synthetic) }}</td></tr>
<tr><td>answers that refuse</td><td>{{ "{:,}".format(report.num_refusals) }} of {{ "{:,}".format(report.num_answers) }}
</td></tr></table></div>
{% for note in report.notes %}<p class="note">{{ note|shown }}</p>{% endfor %}
{% if report.steps %}<h2>Rows at each step</h2>
{{ steps }}
<p><small><span class="key kept"></span> kept <span class="key changed"></span> changed
<span class="key dropped"></span> dropped or held out</small></p>{% endif %}
<h2>Lengths</h2>
{% if report.tokens %}{{ histogram }}
<p><small>Tokens per training sequence, base <code>{{ report.tokens.base }}</code>;
{{ report.tokens.num_cut }} of {{ "{:,}".format(report.tokens.num_checked) }} exceed <code>max_length</code>
{{ report.tokens.max_length }}.</small></p>{% endif %}
<div class="scroll"><table><tr><th></th>
{% for name in ("shortest", "median", "95%", "99%", "longest", "in all") %}<th class="num">{{ name }}</th>{% endfor %}
</tr>
{% for each in lengths %}<tr><td>{{ each.part }}, {{ each.unit }}</td>
{% for value in (each.smallest, each.median, each.p95, each.p99, each.largest, each.total) %}
<td class="num">{{ "{:,}".format(value) }}</td>{% endfor %}</tr>{% endfor %}</table></div>
{% if report.balance %}<h2>Classes</h2>
{{ classes }}
<p><small>{{ report.balance.num_classes }} different answers{% if report.balance.num_classes > max_classes %}, the most
frequent {{ max_classes }} are shown{% endif %}. Evenness {{ "%.2f"|format(report.balance.evenness) }}: 1 if all are
equally frequent. <span class="key train"></span> train <span class="key validation"></span> validation
<span class="key test"></span> test</small></p>{% endif %}
<h2>Languages</h2>
{% for each in report.languages %}{{ languages(each) }}{% endfor %}
<h2>Findings</h2>
{% for group in report.groups %}<details open><summary>{{ group.name }}: {{ group.findings|length|rows }}</summary>
<div class="scroll"><table><tr><th>row</th><th>found</th><th>text</th></tr>
{% for each in group.findings[:max_listed] %}<tr><td class="where"><bdi>{{ each.where|shown }}</bdi></td>
<td class="where"><bdi>{{ each.reason|shown }}</bdi>
{% if each.other %}<bdi>({{ each.other|shown }})</bdi>{% endif %}</td>
<td class="text"><bdi>{{ each.text|shown }}</bdi></td></tr>{% endfor %}</table></div>
{% if group.findings|length > max_listed %}<p class="soft">{{ "{:,}".format(group.findings|length - max_listed) }} more:
<code>lorikeet data report --json</code> lists all.</p>{% endif %}
</details>{% else %}<p>Nothing was found.</p>{% endfor %}
<h2>What the model learns</h2>
{% for row in report.learnt %}<pre>{% for span in row.spans %}
{{- "" }}<span class="{{ "learnt" if span.is_learnt else "context" }}">{{ span.text|shown }}</span>{% endfor %}</pre>
<p><small><bdi>{{ row.where|shown }}</bdi>: {{ row.num_context_tokens }} context tokens, {{ row.num_learnt_tokens }}
trained (in green)</small></p>{% else %}<p>Not shown; see the notes above.</p>{% endfor %}
</body></html>
"""


def render_page(report: DataReport) -> str:
    """Everything that comes from rows or file names is escaped."""
    environment = Environment(autoescape=True)
    environment.filters |= {"shown": shown_text, "rows": num_rows}
    tokens = report.tokens
    return environment.from_string(_PAGE).render(
        report=report,
        style=Markup(_STYLE),
        steps=step_bars(report.steps),
        histogram=histogram_bars("Tokens a row", tokens.histogram, tokens.max_length) if tokens else "",
        lengths=(*report.lengths, *((tokens.rows, tokens.learnt) if tokens else ())),
        classes=_class_bars(report.balance) if report.balance else "",
        max_classes=_MAX_CLASSES,
        max_listed=MAX_LISTED,
        languages=_language_bars,
    )


def write_page(report: DataReport, folder: Path) -> Path:
    """Write `<domain>.html`, which has rows in it and so is private; returns its path."""
    make_private_folder(folder)
    path = folder / f"{report.domain}.html"
    staging = path.with_suffix(".tmp")
    write_private(staging, render_page(report))
    staging.replace(path)
    return path


def _class_bars(balance: BalanceFigures) -> Markup:
    rows = [
        BarRow(
            _shortened(each.answer),
            tuple((each.counts[split], split) for split in SPLITS),
            ", ".join(f"{each.counts[split]:,} {split}" for split in SPLITS),
        )
        for each in balance.classes[:_MAX_CLASSES]
    ]
    return bar_rows("Rows of each class", rows)


def _language_bars(figures: LanguageFigures) -> Markup:
    counts = [*figures.counts.items(), *([("too short to tell", figures.num_unknown)] if figures.num_unknown else [])]
    rows = [BarRow(language, ((count, "kept"),), f"{count:,} {figures.part}s") for language, count in counts]
    return bar_rows(f"Languages of {figures.part}s", rows)


def _shortened(label: str, most: int = 26) -> str:
    text = shown_text(" ".join(label.split()))
    return text if len(text) <= most else f"{text[: most - 1]}…"
