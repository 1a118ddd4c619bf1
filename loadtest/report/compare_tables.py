"""Terminal tables of a comparison, and parsing of `--fail-if-worse`."""

import re

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtest.errors import SloError
from loadtest.report.compare import Difference, RunComparison

_STYLES = {"better": "green", "worse": "bold red", "no difference": "dim", "unknown": "dim"}


def parse_share(text: str) -> float:
    """Parse `5%` or `0.05`.

    Raises:
        SloError: The text is not a share.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(%?)", text.strip())
    if match is None:
        raise SloError(f"--fail-if-worse: got {text!r}, wanted a share such as 5% or 0.05.")
    return float(match[1]) / (100 if match[2] else 1)


def comparison_table(comparison: RunComparison) -> Table:
    """All traffic first, then each model, in 80 columns."""
    table = Table(title=f"{comparison.a} (A) and {comparison.b} (B)", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    table.add_column("figure")
    for column in ("A", "B", "B/A", "95%"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("B is", no_wrap=True)
    for difference in (*comparison.overall, *comparison.by_model):
        table.add_row(*_cells(difference), style=_STYLES[difference.change])
    return table


def _cells(difference: Difference) -> tuple[str, ...]:
    return (
        difference.model or "all",
        difference.metric.replace("output tokens", "tok").replace("requests", "req"),
        _value(difference.metric, difference.a),
        _value(difference.metric, difference.b),
        "" if difference.ratio is None else f"{difference.ratio:.2f}",
        _interval(difference),
        difference.change,
    )


def _interval(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return ""
    if difference.metric == "errors":
        return f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    return f"{difference.low:.2f}–{difference.high:.2f}"


def _value(metric: str, value: float | None) -> str:
    """Rates plain, errors in percent, latencies in milliseconds."""
    if value is None:
        return "–"
    if metric == "errors":
        return f"{100 * value:.1f}%"
    return f"{value:.2f}" if metric.endswith("/s") else f"{1000 * value:.1f} ms"
