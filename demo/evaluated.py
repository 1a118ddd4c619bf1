"""What was evaluated of a version before it was published, in rows: slices, robustness and forgetting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from adapters.scores import Score
from adapters.store.evaluation_records import NATS, FigureRecord
from adapters.store.manifest import Manifest

Group = Literal["held-out questions", "robustness", "forgetting"]
GROUPS: tuple[Group, ...] = ("held-out questions", "robustness", "forgetting")

_CLASSES = "class: "


@dataclass(frozen=True)
class EvaluatedRow:
    """One figure of base and adapter, as text.

    Attributes:
        change: Whether the whole interval of the difference is on one side: `better`, `worse`, else "".
    """

    group: Group
    part: str
    metric: str
    n: int
    base: str
    adapter: str
    difference: str
    change: Literal["better", "worse", ""]


def figures_of(manifest: Manifest) -> tuple[FigureRecord, ...]:
    """The manifest's; of a version whose forgetting is not among them, with the one text that was measured."""
    forgetting = manifest.forgetting
    if forgetting is None or any(figure.kind == "forgetting" for figure in manifest.figures):
        return manifest.figures
    base, adapter = (
        _without_interval(nll, forgetting.num_tokens) for nll in (forgetting.base_nll, forgetting.adapter_nll)
    )
    text = FigureRecord(
        kind="forgetting", metric=NATS, part=forgetting.text, base=base, adapter=adapter, higher_is_better=False
    )
    return (*manifest.figures, text)


def rows_of(figures: Sequence[FigureRecord], *, with_classes: bool) -> list[EvaluatedRow]:
    """By group; of the held-out questions the first metric by slice, of the others the figures of all questions.

    Args:
        with_classes: Also the slices by class, of which there may be many.
    """
    rows = list(_rows(figures, with_classes))
    return sorted(rows, key=lambda row: GROUPS.index(row.group))


def _rows(figures: Sequence[FigureRecord], with_classes: bool) -> Iterator[EvaluatedRow]:
    first = next((figure.metric for figure in figures if figure.kind == "metric"), None)
    for figure in figures:
        if figure.kind == "metric":
            is_shown = not figure.part or (figure.metric == first and not figure.part.startswith(_CLASSES))
            if is_shown or (with_classes and figure.metric == first):
                yield _row("held-out questions", figure)
        elif figure.kind in ("robustness", "forgetting"):
            yield _row(figure.kind, figure)


def _row(group: Group, figure: FigureRecord) -> EvaluatedRow:
    return EvaluatedRow(
        group,
        figure.part or "all",
        figure.metric,
        figure.adapter.n,
        "–" if figure.base is None else _value(figure.base, figure),
        _value(figure.adapter, figure),
        _difference(figure),
        figure.change,
    )


def _value(score: Score, figure: FigureRecord) -> str:
    if not figure.is_share:
        return f"{score.value:.2f}"
    return f"{100 * score.value:.0f}% ({100 * score.ci_low:.0f}–{100 * score.ci_high:.0f})"


def _difference(figure: FigureRecord) -> str:
    found = figure.difference
    factor, digits = (100, 0) if figure.is_share else (1, 2)
    if found is None:
        return "–" if figure.base is None else f"{factor * (figure.adapter.value - figure.base.value):+.{digits}f}"
    low, high = factor * found.ci_low, factor * found.ci_high
    return f"{factor * found.value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _without_interval(value: float, n: int) -> Score:
    return Score(value=value, ci_low=value, ci_high=value, n=n)
