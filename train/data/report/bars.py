"""Bars as inline SVG; their colours are the page's classes, so that they follow its light or dark scheme."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup

from config.dataset import StepRecord
from train.data.report.figures import Histogram

_ROW_HEIGHT, _LABEL_WIDTH, _BAR_WIDTH, _TEXT_WIDTH = 26, 220, 440, 230
_WIDTH = _LABEL_WIDTH + _BAR_WIDTH + _TEXT_WIDTH

_ROWS = """<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ title }}">
{% for row in rows %}{% set y = loop.index0 * row_height %}
<text x="{{ label_width - 10 }}" y="{{ y + 17 }}" class="label">{{ row.label }}</text>
{% for part in row.parts %}<rect x="{{ part.x }}" y="{{ y + 4 }}" width="{{ part.width }}" height="18"
class="{{ part.kind }}"/>{% endfor %}
<text x="{{ label_width + bar_width + 10 }}" y="{{ y + 17 }}">{{ row.text }}</text>{% endfor %}</svg>"""

_HISTOGRAM = """<svg viewBox="0 0 880 200" role="img" aria-label="{{ title }}">
{% for bar in bars %}<rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}"
class="kept"><title>{{ bar.title }}</title></rect>{% endfor %}
<line x1="0" x2="880" y1="170" y2="170" class="axis"/>
{% for tick in ticks %}<text x="{{ tick.x }}" y="188" class="tick">{{ tick.text }}</text>{% endfor %}
{% if limit_x is not none %}<line x1="{{ limit_x }}" x2="{{ limit_x }}" y1="0" y2="170" class="limit"/>
<text x="{{ limit_x - 6 }}" y="12" class="label">{{ limit_text }}</text>{% endif %}</svg>"""

_ENVIRONMENT = Environment(autoescape=True)


@dataclass(frozen=True)
class BarRow:
    """One horizontal bar of several parts: (number, class of the colour)."""

    label: str
    values: tuple[tuple[int, str], ...]
    text: str


def step_bars(steps: Sequence[StepRecord]) -> Markup:
    """One bar a step: what it kept, what it changed, what it dropped."""
    rows = [
        BarRow(
            step.name,
            ((step.num_after - step.num_changed, "kept"), (step.num_changed, "changed"), (step.num_dropped, "dropped")),
            _step_text(step),
        )
        for step in steps
    ]
    return bar_rows("Rows at each step", rows)


def bar_rows(title: str, rows: Sequence[BarRow]) -> Markup:
    most = max((sum(number for number, _ in row.values) for row in rows), default=0) or 1
    drawn = [{"label": row.label, "text": row.text, "parts": _parts(row, most)} for row in rows]
    return Markup(
        _ENVIRONMENT.from_string(_ROWS).render(
            title=title,
            rows=drawn,
            width=_WIDTH,
            height=_ROW_HEIGHT * len(rows),
            row_height=_ROW_HEIGHT,
            label_width=_LABEL_WIDTH,
            bar_width=_BAR_WIDTH,
        )
    )


def histogram_bars(title: str, histogram: Histogram, limit: int) -> Markup:
    """Vertical bars, and a dashed line at `limit`."""
    width = 880 / len(histogram.counts)
    most = max(histogram.counts) or 1
    end = histogram.edges[-1]
    bars = [
        {
            "x": round(index * width + 1, 1),
            "y": round(170 - 150 * count / most, 1),
            "width": round(width - 2, 1),
            "height": round(150 * count / most, 1),
            "title": f"{histogram.edges[index]} to {histogram.edges[index + 1] - 1} tokens: {count:,} rows",
        }
        for index, count in enumerate(histogram.counts)
    ]
    ticks = [{"x": round(880 * edge / end, 1), "text": edge} for edge in histogram.edges[:-1:4]]
    limit_x = round(880 * limit / end, 1) if limit <= end else None
    return Markup(
        _ENVIRONMENT.from_string(_HISTOGRAM).render(
            title=title, bars=bars, ticks=ticks, limit_x=limit_x, limit_text=f"max_length {limit}"
        )
    )


def _parts(row: BarRow, most: int) -> list[dict[str, object]]:
    parts, x = [], float(_LABEL_WIDTH)
    for number, kind in row.values:
        width = _BAR_WIDTH * number / most
        if number:
            parts.append({"x": round(x, 1), "width": round(max(width, 1.0), 1), "kind": kind})
        x += width
    return parts


def _step_text(step: StepRecord) -> str:
    words = [f"{step.num_after:,} rows"]
    words += [f"−{step.num_dropped:,}"] if step.num_dropped else []
    words += [f"{step.num_changed:,} changed"] if step.num_changed else []
    return ", ".join(words)
