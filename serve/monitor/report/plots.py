"""The plots of the quality report: one line a version, in the same colour everywhere; times in UTC."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from adapters.reference import DEFAULT_ALIAS
from quality.svg import BLUE, GREEN, GREY, ORANGE, RED, plain
from serve.monitor.report.figures import AdapterFigures, JudgeFigures, SignalStep, VersionFigures

MOST_VERSIONS = 6
_COLOURS = (BLUE, ORANGE, GREEN, "#8e6bbf", "#3aa6b9", "#b58a3f")

Value = Callable[[SignalStep], float | None]

_SIGNALS: tuple[tuple[str, Value], ...] = (
    ("log-probability per token, nats", lambda step: step.mean_logprob),
    ("refusals, %", lambda step: 100 * step.refused),
    ("tokens per answer", lambda step: step.num_tokens),
    ("TTFT p50, ms", lambda step: None if step.ttft_s is None else 1000 * step.ttft_s),
)


def draw_held_out(figure: Any, adapter: AdapterFigures) -> None:
    """Accuracy over all questions asked so far, with its interval; dashed: what it was at publish."""
    axes = plain(figure.subplots())
    versions = shown(adapter, lambda version: bool(version.held_out))
    for version, colour in versions:
        times = _times([step.at_s for step in version.held_out])
        shares = [step.accuracy for step in version.held_out]
        low, high = [100 * share.ci_low for share in shares], [100 * share.ci_high for share in shares]
        label = f"{_name(adapter, version)} ({shares[-1].n} questions)"
        axes.plot(times, [100 * share.value for share in shares], ".-", color=colour, label=label, linewidth=1.6)
        if len(times) > 1:
            axes.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.vlines(times, low, high, color=colour, alpha=0.4, linewidth=3)
        if version.published is not None:
            axes.axhline(100 * version.published.value, color=colour, linestyle="--", linewidth=1)
    _mark_moves(axes, adapter, [step.at_s for version, _ in versions for step in version.held_out])
    axes.set_ylabel("right, %")
    axes.set_ylim(-2, 102)
    _time_axis(axes)
    _legend(axes)


def draw_signals(figure: Any, adapter: AdapterFigures) -> None:
    """Four figures of the samples, without any reference answer."""
    versions = shown(adapter, lambda version: bool(version.signals))
    for axes, (title, value) in zip(figure.subplots(2, 2, sharex=True).flat, _SIGNALS, strict=True):
        plain(axes).set_title(title, fontsize=10, loc="left")
        known = False
        for version, colour in versions:
            steps = [(step.at_s, value(step)) for step in version.signals]
            points = [(at_s, figure_of) for at_s, figure_of in steps if figure_of is not None]
            if points:
                known = True
                times = _times([at_s for at_s, _ in points])
                label = _name(adapter, version)
                axes.plot(times, [y for _, y in points], ".-", color=colour, label=label, linewidth=1.4, markersize=4)
        if known:
            _time_axis(axes)
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color="#5c6b7a", fontsize=9)
        if value is not _SIGNALS[0][1]:
            highest = max(5.0, axes.get_ylim()[1])  # no refusal at all is a line at the bottom, not noise
            axes.set_ylim(-0.02 * highest, highest)
    _shared_legend(figure)


def draw_general(figure: Any, adapter: AdapterFigures) -> None:
    """Negative log-likelihood of general text; dashed: what the training stack measured."""
    axes = plain(figure.subplots())
    for version, colour in shown(adapter, lambda version: bool(version.general)):
        times = _times([step.at_s for step in version.general])
        axes.plot(times, [step.nll for step in version.general], ".-", color=colour, label=_name(adapter, version))
        if version.published_nll is not None:
            axes.axhline(version.published_nll, color=colour, linestyle="--", linewidth=1)
    axes.set_ylabel("nats per token")
    axes.margins(y=0.4)
    _time_axis(axes)
    _legend(axes)


def draw_drift_steps(figure: Any, adapter: AdapterFigures) -> None:
    """One mark per drift check, one row per version; red: drift."""
    axes = plain(figure.subplots())
    versions = shown(adapter, lambda version: bool(version.drift_steps))
    for row, (version, _) in enumerate(versions):
        for is_drift, colour, marker in ((False, GREY, "|"), (True, RED, "o")):
            drift_steps = [step for step in version.drift_steps if step.is_drift == is_drift]
            times = _times([step.at_s for step in drift_steps])
            axes.plot(times, [row] * len(drift_steps), marker, color=colour, markersize=9 if marker == "|" else 6)
    axes.set_yticks(range(len(versions)), [_name(adapter, version) for version, _ in versions])
    axes.set_ylim(len(versions) - 0.5, -0.5)
    _mark_moves(axes, adapter, [step.at_s for version, _ in versions for step in version.drift_steps])
    _time_axis(axes)


def draw_scores(figure: Any, adapter: AdapterFigures) -> None:
    """Mean score of each judge, one row a version."""
    axes = plain(figure.subplots())
    axes.grid(axis="x", color="#e6ebf0", linewidth=0.8)
    judges = [judge.judge for judge in adapter.judges]
    versions = shown(adapter, lambda version: bool(version.scores))
    for place, judge in enumerate(judges):
        points = [
            (row + 0.2 * (place - (len(judges) - 1) / 2), one.score)
            for row, (version, _) in enumerate(versions)
            for one in version.scores
            if one.judge == judge
        ]
        spans = [
            [score.value - score.ci_low for _, score in points],
            [score.ci_high - score.value for _, score in points],
        ]
        axes.errorbar(
            [score.value for _, score in points],
            [row for row, _ in points],
            xerr=spans,
            fmt="o",
            color=_COLOURS[place % len(_COLOURS)],
            label=judge,
            capsize=3,
        )
    axes.set_yticks(range(len(versions)), [_name(adapter, version) for version, _ in versions])
    axes.set_ylim(len(versions) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("mean score, 0 to 1")
    _legend(axes)


def draw_agreement(figure: Any, judge: JudgeFigures) -> None:
    """Matrix of human labels against the judge's grades."""
    axes = figure.subplots()
    counts = np.array(judge.counts)
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=max(1, counts.max()) * 1.3)
    for (row, column), count in np.ndenumerate(counts):
        colour = "#c3ccd6" if not count else "white" if count > 0.7 * counts.max() else "#1d2733"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=9, color=colour)
    grades = range(1, len(counts) + 1)
    axes.set_xticks(range(len(counts)), grades)
    axes.set_yticks(range(len(counts)), grades)
    axes.set_xlabel("the judge's grade", fontsize=9)
    axes.set_ylabel("human label", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def shown(adapter: AdapterFigures, has: Callable[[VersionFigures], bool]) -> list[tuple[VersionFigures, str]]:
    """The newest versions that have the figure, each with its colour."""
    chosen = [version for version in adapter.versions if has(version)][-MOST_VERSIONS:]
    numbers = [version.version for version in adapter.versions]
    return [(version, _COLOURS[numbers.index(version.version) % len(_COLOURS)]) for version in chosen]


def rows_height(num_rows: int) -> float:
    """Inches of a plot with one row a version."""
    return 1.1 + 0.4 * min(num_rows, MOST_VERSIONS)


def _name(adapter: AdapterFigures, version: VersionFigures) -> str:
    return f"{adapter.name}@{version.version}" if version.version else adapter.name


def _mark_moves(axes: Any, adapter: AdapterFigures, shown_s: Sequence[float]) -> None:
    """What moved traffic within the time that is shown, as dotted lines."""
    for decision in adapter.decisions:
        at = datetime.fromisoformat(decision.at)
        colour = RED if decision.kind == "rolled_back" else GREEN if decision.alias == DEFAULT_ALIAS else GREY
        if decision.kind in ("promoted", "rolled_back") and min(shown_s) <= at.timestamp() <= max(shown_s):
            axes.axvline(at, color=colour, linestyle=":", linewidth=1.2)


def _times(seconds: Sequence[float]) -> list[datetime]:
    return [datetime.fromtimestamp(at_s, UTC) for at_s in seconds]


def _time_axis(axes: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=7)  # type: ignore[no-untyped-call]  # untyped upstream
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]  # as above
    axes.tick_params(labelsize=9)
    axes.xaxis.get_offset_text().set_fontsize(9)


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8, borderaxespad=0.2)


def _shared_legend(figure: Any) -> None:
    """One for all axes."""
    by_label = dict(_handles(figure))
    figure.legend(by_label.values(), by_label.keys(), frameon=False, ncols=6, loc="outside upper right", fontsize=8)


def _handles(figure: Any) -> Iterator[tuple[str, Any]]:
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        yield from zip(labels, handles, strict=True)
