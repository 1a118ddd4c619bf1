"""The plots of the demo's report."""

from typing import Any

from demo.figures import DemoReport, StepFigures, StepKind
from quality.svg import BLUE, GREEN, GREY, ORANGE, RED, plain

_COLOURS = {"base": GREY, "few_shot": BLUE, "adapter": GREEN}
_LABELS = {"base": "base, zero-shot", "few_shot": "base, 5 examples in the prompt", "adapter": "adapter"}
_STEP_COLOURS: dict[StepKind, str] = {"prepare": GREY, "server": ORANGE, "train": BLUE, "evaluate": GREEN}
_STEP_LABELS: dict[StepKind, str] = {
    "prepare": "prepare",
    "server": "server starts",
    "train": "train and publish",
    "evaluate": "evaluate through the endpoint",
}
_MEANWHILE = "asked while training"
_ROOM_FOR_TEXT = 0.06
"""Of the whole width."""


def draw_accuracy(figure: Any, report: DemoReport) -> None:
    axes = plain(figure.subplots())
    width = 0.26
    for offset, kind in enumerate(("base", "few_shot", "adapter")):
        values = [100 * getattr(d, kind) for d in report.domains]
        ends = [getattr(d, f"{kind}_interval") for d in report.domains]
        spans = [[v - 100 * low for v, (low, _) in zip(values, ends, strict=True)],
                 [100 * high - v for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
        places = [index + (offset - 1) * width for index in range(len(values))]
        axes.bar(places, values, width, yerr=spans, capsize=3, color=_COLOURS[kind], label=_LABELS[kind])
    axes.set_xticks(range(len(report.domains)), [d.domain for d in report.domains])
    axes.set_ylabel("exact match, %")
    axes.set_ylim(0, 105)
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def draw_speed(figure: Any, report: DemoReport) -> None:
    left, right = figure.subplots(1, 2)
    names = [d.domain for d in report.domains]
    for axes, title, field, factor in (
        (left, "tokens per second", "tokens_per_s", 1),
        (right, "TTFT p50, ms", "ttft_p50_s", 1000),
    ):
        plain(axes)
        for offset, (prefix, kind) in enumerate((("base_", "base"), ("", "adapter"))):
            values = [factor * getattr(d, prefix + field) for d in report.domains]
            axes.bar(
                [i + (offset - 0.5) * 0.36 for i in range(len(names))], values, 0.36, color=_COLOURS[kind], label=kind
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_title(title, fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=2, loc="outside upper center")


def draw_timeline(figure: Any, report: DemoReport) -> None:
    """Steps as bars over the wall clock; a diamond where an adapter first answered, a dot a question meanwhile."""
    axes = plain(figure.subplots())
    axes.grid(visible=False)
    axes.grid(axis="x", color="#e6ebf0", linewidth=0.8)
    steps = timeline_steps(report)
    rows = [step.name for step in steps] + ([_MEANWHILE] if report.meanwhile else [])
    _draw_bars(axes, steps, report.seconds)
    for swap in report.swaps:
        # Of an adapter that was there already no training is drawn.
        row = next(index for index, name in enumerate(rows) if name.split()[-1] == swap.adapter)
        axes.plot(_minutes(swap.answer_s), row, "D", color=RED, markersize=7, zorder=3)
        axes.annotate(
            f"{swap.served_by} answers",
            (_minutes(swap.answer_s), row),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    for is_ok, colour in ((True, ORANGE), (False, RED)):
        places = [_minutes(one.at_s) for one in report.meanwhile if one.is_ok == is_ok]
        axes.plot(places, [len(rows) - 1] * len(places), "o" if is_ok else "x", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02 * _minutes(report.seconds))
    axes.set_xlabel("minutes since the start of the demo")
    _draw_legend(axes, steps)


def timeline_steps(report: DemoReport) -> list[StepFigures]:
    """What gets a bar, in the order of the start; questions are too short for one."""
    return sorted((step for step in report.steps if step.kind != "answer"), key=lambda step: step.start_s)


def _draw_bars(axes: Any, steps: list[StepFigures], total_s: float) -> None:
    for row, step in enumerate(steps):
        start, length = _minutes(step.start_s), _minutes(step.seconds)
        axes.barh(row, length, left=start, height=0.62, color=_STEP_COLOURS[step.kind])
        text = f"{step.seconds:.0f} s"
        if step.seconds > _ROOM_FOR_TEXT * total_s:
            axes.text(start + length / 2, row, text, ha="center", va="center", fontsize=8, color="white")
        else:
            axes.annotate(text, (start + length, row), (4, 0), textcoords="offset points", va="center", fontsize=8)


def _draw_legend(axes: Any, steps: list[StepFigures]) -> None:
    kinds = [kind for kind in _STEP_COLOURS if any(step.kind == kind for step in steps)]
    bars = [axes.barh(0, 0, color=_STEP_COLOURS[kind], label=_STEP_LABELS[kind]) for kind in kinds]
    (diamond,) = axes.plot([], [], "D", color=RED, markersize=7, label="first answer of an adapter")
    axes.legend(
        handles=[*bars, diamond], frameon=False, ncols=5, fontsize=8, loc="lower center", bbox_to_anchor=(0.45, 1.0)
    )


def _minutes(seconds: float) -> float:
    return seconds / 60
