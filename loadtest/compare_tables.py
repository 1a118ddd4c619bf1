"""A comparison for the terminal, and what `--fail-if-worse` means."""

import re

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtest.compare import Comparison, Difference
from loadtest.errors import SloError

_STYLES = {"better": "green", "worse": "bold red", "no difference": "dim", "unknown": "dim"}


def parse_share(text: str) -> float:
    """`5%` or `0.05`.

    Raises:
        SloError: It is neither.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(%?)", text.strip())
    if match is None:
        raise SloError(f"--fail-if-worse: got {text!r}, wanted a share such as 5% or 0.05.")
    return float(match[1]) / (100 if match[2] else 1)


def comparison_table(comparison: Comparison) -> Table:
    """All traffic first, then each model, in 80 columns."""
    table = Table(title=f"{comparison.a} (A) and {comparison.b} (B)", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    table.add_column("figure")
    for column in ("A", "B", "B/A", "95% interval"):
        table.add_column(column, justify="right")
    table.add_column("B is")
    for difference in (*comparison.overall, *comparison.by_model):
        table.add_row(*_cells(difference), style=_STYLES[difference.change])
    return table


def _cells(difference: Difference) -> tuple[str, ...]:
    is_judged = difference.change != "unknown"
    return (
        difference.model or "all",
        difference.metric,
        _value(difference.metric, difference.a),
        _value(difference.metric, difference.b),
        "" if difference.ratio is None else f"{difference.ratio:.3f}",
        _interval(difference) if is_judged else "",
        difference.change,
    )


def _interval(difference: Difference) -> str:
    if difference.metric == "errors":
        return f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f} pts"
    return f"{difference.low:.3f} to {difference.high:.3f}"


def _value(metric: str, value: float | None) -> str:
    """Rates plain, errors in percent, latencies in milliseconds."""
    if value is None:
        return "–"
    if metric == "errors":
        return f"{100 * value:.1f}%"
    return f"{value:.2f}" if metric.endswith("/s") else f"{1000 * value:.1f} ms"
