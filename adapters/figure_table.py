"""The figures of a version's evaluation as a terminal table."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from adapters.scores import Score
from adapters.store.evaluation_records import FigureRecord

_MAX_CHARS = 60


def figures_table(figures: Sequence[FigureRecord]) -> Table:
    """One line a figure: base and version with 95% intervals, their difference, paired by question."""
    head = (Column("figure", overflow="fold"), "base", "version", "difference", "n")
    table = Table(*head, title="figures, 95% intervals", box=SIMPLE_HEAD)
    for figure in figures:
        left_out = f", {figure.num_left_out} left out" if figure.num_left_out else ""
        n = f"{figure.adapter.n}{left_out}"
        table.add_row(Text(figure_name(figure)), interval(figure.base), interval(figure.adapter), difference(figure), n)
    return table


def figure_name(figure: FigureRecord) -> str:
    """Its key in one line; of another kind than a metric, with the metric that it is measured by."""
    key = " ".join(figure.key.split())
    shown = key if len(key) <= _MAX_CHARS else f"{key[: _MAX_CHARS - 1]}…"
    return shown if figure.kind == "metric" else f"{shown}, {figure.metric}"


def interval(score: Score | None) -> str:
    """`0.812 (0.760 to 0.853)`; `-` without a score."""
    return "-" if score is None or score.n == 0 else f"{score.value:.3f} ({score.ci_low:.3f} to {score.ci_high:.3f})"


def difference(figure: FigureRecord) -> str:
    """`+0.712 (+0.651 to +0.764)`, with `*` where it is beyond chance."""
    score = figure.difference
    if score is None:
        return "-"
    mark = " *" if figure.change else ""
    return f"{score.value:+.3f} ({score.ci_low:+.3f} to {score.ci_high:+.3f}){mark}"
