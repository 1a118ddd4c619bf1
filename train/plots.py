"""The plot of a version: its losses, and what it gained and lost, as one SVG file beside the model card."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adapters.store.evaluation_records import FigureRecord
from adapters.store.manifest import LossCurves, ManifestDraft
from adapters.store.version_files import PLOT_FILE
from quality.svg import BLUE, GREEN, GREY, RED, plain, svg

_WIDTH, _HEIGHT = 5.0, 3.4


def write_plot(draft: ManifestDraft, folder: Path) -> bool:
    """Write the plot; False if there is nothing to plot."""
    losses = None if draft.training is None else draft.training.losses
    compared = [figure for figure in draft.figures if _is_compared(figure)]
    scores = [figure for figure in compared if not figure.is_text]
    texts = [figure for figure in compared if figure.is_text]
    panels: list[Callable[[Any], None]] = []
    if losses is not None and losses.held_out:
        panels.append(partial(_losses, losses=losses))
    if scores:
        panels.append(partial(_differences, figures=scores, title="score: adapter minus base"))
    if texts:
        panels.append(partial(_differences, figures=texts, title="nats per token: adapter minus base"))
    if not panels:
        return False

    def draw(figure: Any) -> None:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(plain(axes))

    (folder / PLOT_FILE).write_text(svg(draw, (_WIDTH * len(panels), _HEIGHT)), encoding="utf-8")
    return True


def _is_compared(figure: FigureRecord) -> bool:
    """Of one scale: shares and means from 0 to 1, and likelihoods."""
    is_shown = figure.kind == "forgetting" or (figure.kind == "metric" and not figure.part)
    return is_shown and figure.difference is not None and (figure.is_text or abs(figure.adapter.value) <= 1)


def _losses(axes: Any, losses: LossCurves) -> None:
    axes.plot(*zip(*losses.train, strict=True), color=GREY, linewidth=1, label="training rows, each step")
    axes.plot(*zip(*losses.held_out, strict=True), color=BLUE, marker="o", markersize=4, label="held-out rows")
    if losses.kept_step is not None:
        axes.axvline(losses.kept_step, color=GREEN, linestyle=":", label="weights kept")
    if min(value for _, value in (*losses.train, *losses.held_out)) > 0:  # those of reinforcement may be below
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_title("loss", fontsize=10)
    axes.set_xlabel("step")
    axes.legend(fontsize=8, frameon=False)


def _differences(axes: Any, figures: Sequence[FigureRecord], title: str) -> None:
    """One line a figure, green where better and red where worse with certainty."""
    for place, figure in enumerate(reversed(figures)):
        difference = figure.difference
        assert difference is not None
        ends = [difference.value - difference.ci_low], [difference.ci_high - difference.value]
        axes.errorbar([difference.value], [place], xerr=ends, fmt="o", markersize=4, color=_colour(figure), capsize=3)
    axes.set_yticks(range(len(figures)), [figure.part or figure.metric for figure in reversed(figures)])
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_title(title, fontsize=10)


def _colour(figure: FigureRecord) -> str:
    return {"better": GREEN, "worse": RED, "": GREY}[figure.change]
