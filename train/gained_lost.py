"""What a version gained in its domain and lost elsewhere: rows for the card and the terminal, in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf
from statistics import fmean

from rich.table import Table

from adapters.scores import Score
from adapters.store.evaluation_records import FigureRecord

NF4_RATIO = 1.28
"""Perplexity of the five texts after NF4 quantization of the demo's base, as a ratio (docs/evaluation.md)."""

_SIZES = ((1.01, "hardly"), (1.05, "little"), (1.25, "noticeably"), (inf, "much"))
"""Perplexity ratios below which a text was lost so much."""


@dataclass(frozen=True)
class ShownFigure:
    """One figure of base and adapter, as text.

    Attributes:
        result: `gained`, `lost`…, in a few words.
    """

    name: str
    base: str
    adapter: str
    difference: str
    result: str


def gained_and_lost(figures: Sequence[FigureRecord]) -> list[ShownFigure]:
    """The domain's own figures without slices, then the forgetting ones, in order."""
    own = [figure for figure in figures if figure.kind == "metric" and not figure.part and figure.base]
    return [_change(f"held-out: {figure.metric}", figure) for figure in own] + [
        _change(f"text: {figure.part}" if figure.is_text else figure.part, figure)
        for figure in figures
        if figure.kind == "forgetting"
    ]


def gained_lost_section(figures: Sequence[FigureRecord]) -> list[str]:
    """Paragraphs of the model card; none without figures of forgetting."""
    if not any(figure.kind == "forgetting" for figure in figures):
        return []
    rows = [f"| {c.name} | {c.base} | {c.adapter} | {c.difference} | {c.result} |" for c in gained_and_lost(figures)]
    table = ["| | base | adapter | adapter minus base (95% interval) | |", "|---|---|---|---|---|", *rows]
    sections = ["## Gained here, lost there", "\n".join(table)]
    return [*sections, *(text for text in (text_summary(figures),) if text)]


def gained_lost_table(figures: Sequence[FigureRecord]) -> Table:
    """The same for the terminal."""
    table = Table("", "base", "adapter", "adapter minus base", "", title="gained here, lost there")
    for change in gained_and_lost(figures):
        table.add_row(change.name, change.base, change.adapter, change.difference, change.result)
    table.caption = text_summary(figures) or None
    return table


def text_summary(figures: Sequence[FigureRecord]) -> str:
    """How much likelihood general texts lost in all; "" without texts."""
    losses = text_losses(figures)
    if not losses:
        return ""
    return (
        f"Perplexity of general texts: {exp(fmean(losses)):.2f} times the base's, in the mean of {len(losses)}. For "
        f"comparison: 4-bit quantization costs SmolLM2-135M {NF4_RATIO:.2f} times (NF4), a 7B base about 1.04 times."
    )


def text_losses(figures: Sequence[FigureRecord]) -> list[float]:
    """By how much the likelihood of each general text fell, nats per token."""
    return [
        figure.difference.value
        for figure in figures
        if figure.kind == "forgetting" and figure.is_text and figure.difference is not None
    ]


def overfitting_section(figures: Sequence[FigureRecord]) -> list[str]:
    """Paragraphs of the model card on training rows; none if they were not asked."""
    by_part = {figure.part: figure for figure in figures if figure.kind == "overfitting"}
    lines = [
        f"| {words} | {_text(by_part[part].adapter, by_part[part])} | {_gap(by_part[f'{part} gap'])} | "
        f"{_gap_of_base(by_part[f'{part} gap'])} |"
        for part, words in _PARTS.items()
        if part in by_part and f"{part} gap" in by_part
    ]
    if not lines:
        return []
    head = ["| | on training rows | minus held-out rows (95% interval) | the base's |", "|---|---|---|---|"]
    return ["## Training rows beside held-out rows", "\n".join([*head, *lines])]


_PARTS = {
    "train rows": "questions",
    "memorisation": "answers from the first half of the question",
    "verbatim": "words of the second half, from the first half",
}


def _change(name: str, figure: FigureRecord) -> ShownFigure:
    assert figure.base is not None
    difference = "-" if figure.difference is None else _signed(figure.difference, figure)
    return ShownFigure(name, _text(figure.base, figure), _text(figure.adapter, figure), difference, _result(figure))


def _result(figure: FigureRecord) -> str:
    if figure.change == "better":
        return "gained"
    if figure.is_base_at_chance:
        return "the base guesses: nothing to lose"
    if figure.difference is None or not figure.change:
        return "no difference seen"
    if not figure.is_text:
        return "lost"
    ratio = exp(figure.difference.value)
    size = next(word for limit, word in _SIZES if ratio < limit)
    return f"lost {size}: perplexity {ratio:.2f} times"


def _text(score: Score, figure: FigureRecord) -> str:
    return f"{score.value:.1%} (n={score.n})" if figure.is_share else f"{score.value:.3f}"


def _signed(score: Score, figure: FigureRecord) -> str:
    if figure.is_share:
        return f"{100 * score.value:+.1f} points ({100 * score.ci_low:+.1f} to {100 * score.ci_high:+.1f})"
    return f"{score.value:+.3f} ({score.ci_low:+.3f} to {score.ci_high:+.3f})"


def _gap(figure: FigureRecord) -> str:
    return _signed(figure.adapter, figure)


def _gap_of_base(figure: FigureRecord) -> str:
    return "-" if figure.base is None else _signed(figure.base, figure)
