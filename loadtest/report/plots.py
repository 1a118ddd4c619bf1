"""The plots of a run. Times on the axes in milliseconds or seconds, as the label says."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.load.records import RunResult
from loadtest.report.slo import Slo
from loadtest.report.stats import Bucket, Metric, TrafficSummary, bucket_width_s, percentile, timeline, values_of
from quality.svg import BLUE, GREEN, GREY, ORANGE, RED, plain

_SHORT_TIME_S = 5.0
"""Latencies up to this value are shown in milliseconds."""

_MAX_BARS = 40
_LATENCIES: tuple[Metric, ...] = ("ttft", "itl", "e2e")


def plain_logarithm(axis: Any) -> None:
    """Ticks at 1, 2, 5, 10, 20…, as plain numbers."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs="all"))
    axis.set_minor_formatter("")


def draw_cdfs(figure: Any, result: RunResult, slo: Slo | None) -> None:
    """Cumulative distribution of a latency over requests (over gaps, for ITL); the SLO's limit as a dashed line."""
    for axes, metric in zip(figure.subplots(1, 3, sharey=True), _LATENCIES, strict=True):
        plain(axes).set_ylim(0, 102)
        values = np.sort(values_of(result.records, metric))
        factor, unit = _unit(percentile(values.tolist(), 99.9) if len(values) else 0.0)
        axes.set_xlabel(f"{metric.upper() if metric != 'e2e' else 'end to end'}, {unit}")
        if not len(values):
            _say_empty(axes)
            continue
        axes.plot(values * factor, 100 * np.arange(1, len(values) + 1) / len(values), color=BLUE, linewidth=1.6)
        _mark_percentiles(axes, values * factor)
        # One answer that took ten times as long must not press the others against the axis.
        longest = max(1.08 * percentile(values.tolist(), 99.5), 1.4 * percentile(values.tolist(), 99))
        axes.set_xlim(0, factor * max(longest, 1.08 * slo_limit_s(slo, metric)))
        if slo_limit_s(slo, metric):
            axes.axvline(factor * slo_limit_s(slo, metric), color=RED, linestyle="--", linewidth=1)
    figure.axes[0].set_ylabel("share at or below, %")


def slo_limit_s(slo: Slo | None, metric: Metric) -> float:
    """The limit; 0 if there is none."""
    return (slo.limit_s(metric) if slo else None) or 0.0


def _mark_percentiles(axes: Any, values: Any) -> None:
    for q in (50, 99):
        value = float(np.percentile(values, q))
        axes.plot([value], [q], "o", color=BLUE, markersize=4)
        axes.annotate(
            f"p{q} {_shown(value)}",
            (value, q),
            xytext=(5, -11),  # below and to the right of a rising curve there is always room
            textcoords="offset points",
            fontsize=8,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )


def draw_timeline(figure: Any, result: RunResult) -> None:
    """Rate, latency and errors over the run."""
    width_s = bucket_width_s(result.duration_s)
    buckets = timeline(result.records, result.duration_s, width_s)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.6))
    starts = [bucket.start_s for bucket in buckets]
    _draw_rates(plain(top), buckets, starts)
    _draw_latency_line(plain(middle), buckets)
    plain(bottom).bar(starts, [bucket.num_errors for bucket in buckets], width_s, align="edge", color=RED)
    bottom.set_ylabel("errors")
    bottom.set_ylim(0, max([1, *(1.1 * bucket.num_errors for bucket in buckets)]))
    bottom.yaxis.get_major_locator().set_params(integer=True)
    bottom.set_xlabel(f"seconds since the start, in steps of {width_s:g} s")
    bottom.set_xlim(0, starts[-1] + width_s)
    figure.align_ylabels()


def _draw_rates(axes: Any, buckets: Sequence[Bucket], starts: list[float]) -> None:
    edges = [*starts, starts[-1] + buckets[-1].width_s]
    for values, label, colour in (
        ([b.num_intended / b.width_s for b in buckets], "wanted", GREY),
        ([b.num_ok / b.width_s for b in buckets], "answered", GREEN),
    ):
        axes.stairs(values, edges, color=colour, label=label, linewidth=1.6)
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0)
    _legend_above(axes)


def _draw_latency_line(axes: Any, buckets: Sequence[Bucket]) -> None:
    known = [bucket for bucket in buckets if bucket.ttft_p50_s is not None]
    factor, unit = _unit(max((b.ttft_p99_s or 0 for b in known), default=0.0))
    centres = [bucket.start_s + bucket.width_s / 2 for bucket in known]
    for name, label, colour in (("ttft_p99_s", "TTFT p99", ORANGE), ("ttft_p50_s", "TTFT p50", BLUE)):
        values = [factor * getattr(bucket, name) for bucket in known]
        axes.plot(centres, values, ".-", color=colour, label=label, linewidth=1.4, markersize=4)
    axes.set_ylabel(f"TTFT, {unit}")
    axes.set_ylim(bottom=0)
    _legend_above(axes)


def adapters_height(num_adapters: int) -> float:
    """Height in inches of a plot with one row per adapter."""
    return max(1.8, 1.2 + 0.3 * min(num_adapters, _MAX_BARS))


def draw_adapters(figure: Any, adapters: Sequence[TrafficSummary]) -> None:
    """TTFT p50 of warm and of cold requests, one row a model; the line goes to the p99."""
    shown = adapters[:_MAX_BARS]
    if not shown:
        _say_empty(figure.subplots())
        return
    has_cold = any(summary.cold is not None for summary in shown)
    kinds = (("warm", BLUE), ("cold", ORANGE)) if has_cold else (("all", BLUE),)
    longest = max((_ttft(summary, kind)[1] for summary in shown for kind, _ in kinds), default=0.0)
    factor, unit = _unit(longest)
    axes = plain(figure.subplots())
    axes.grid(axis="x", color="#e6ebf0", linewidth=0.8)
    height = 0.76 / len(kinds)
    for place, (kind, colour) in enumerate(kinds):
        pairs = [_ttft(summary, kind) for summary in shown]
        rows = [index + (place - (len(kinds) - 1) / 2) * height for index in range(len(shown))]
        tails = [[0.0] * len(pairs), [factor * max(0.0, p99 - p50) for p50, p99 in pairs]]
        axes.barh(
            rows,
            [factor * p50 for p50, _ in pairs],
            height,
            xerr=tails,
            color=colour,
            label=f"{kind}: bar p50, line to p99",
            error_kw={"ecolor": "#5c6b7a", "elinewidth": 1},
        )
    axes.set_yticks(range(len(shown)), [_row_label(summary) for summary in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"TTFT, {unit}" + _left_out(len(adapters), len(shown)))
    _legend_above(axes)


def _ttft(summary: TrafficSummary, kind: str) -> tuple[float, float]:
    """p50 and p99 in seconds; zeros if no request matches."""
    latencies = summary.latencies if kind == "all" else getattr(summary, kind)
    ttft = latencies.ttft if latencies else None
    return (ttft.p50_s, ttft.p99_s) if ttft else (0.0, 0.0)


def draw_heatmap(figure: Any, result: RunResult, adapters: Sequence[TrafficSummary]) -> None:
    """Median TTFT, one row a model, one column a stretch of time; white where nothing was asked."""
    from matplotlib.colors import LogNorm

    shown = adapters[:_MAX_BARS]
    width_s = bucket_width_s(result.duration_s, most=40)
    grid = np.array([_ttft_row(result, summary.model, width_s) for summary in shown], dtype=float)
    axes = figure.subplots()
    known = grid[np.isfinite(grid) & (grid > 0)]
    if not known.size:
        _say_empty(axes)
        return
    factor, unit = _unit(float(known.max()))
    # At least a factor of four, so that noise does not look like a pattern.
    low, high = factor * float(known.min()), factor * max(float(known.max()), 4 * float(known.min()))
    edges_s = np.arange(grid.shape[1] + 1) * width_s
    mesh = axes.pcolormesh(
        edges_s,
        np.arange(len(shown) + 1) - 0.5,
        grid * factor,
        norm=LogNorm(low, high),
        cmap="viridis_r",
    )
    axes.set_yticks(range(len(shown)), [str(summary.model) for summary in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds since the start, in steps of {width_s:g} s" + _left_out(len(adapters), len(shown)))
    bar = figure.colorbar(mesh, ax=axes, label=f"TTFT p50, {unit}", pad=0.01, aspect=6 + 4 * len(shown))
    ticks = np.geomspace(low, high, 4).tolist()
    bar.set_ticks(ticks, labels=[_shown(tick) for tick in ticks])
    bar.minorticks_off()


def _ttft_row(result: RunResult, model: str | None, width_s: float) -> list[float]:
    records = [record for record in result.records if record.model == model]
    buckets = timeline(records, result.duration_s, width_s)
    return [float("nan") if bucket.ttft_p50_s is None else bucket.ttft_p50_s for bucket in buckets]


def _row_label(summary: TrafficSummary) -> str:
    return f"{summary.model} ({summary.num_requests})"


def _left_out(num_all: int, num_shown: int) -> str:
    return f"; the {num_shown} most asked of {num_all} models" if num_all > num_shown else ""


def _unit(longest_s: float) -> tuple[float, str]:
    return (1000.0, "ms") if longest_s < _SHORT_TIME_S else (1.0, "s")


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _say_empty(axes: Any) -> None:
    axes.text(0.5, 0.5, "no request has this value", ha="center", transform=axes.transAxes, color="#5c6b7a", fontsize=9)


def _legend_above(axes: Any) -> None:
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8, borderaxespad=0.2)
