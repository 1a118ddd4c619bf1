"""Live progress of a run: a table on a terminal, a line every few seconds elsewhere.

It renders in a separate thread from finished requests only, so that it delays the event loop that takes the times by
at most the interpreter's switch interval, which is shortened.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from config.loadtest import LoadtestConfig
from config.progress import lines_every
from loadtest.load.records import RequestRecord
from loadtest.load.runner import RunProgress
from loadtest.report.stats import Metric, percentile, values_of

_REFRESH_PER_S = 2
_LINE_EVERY_S = 5.0
_SWITCH_INTERVAL_S = 0.0005
_MAX_RECORDS = 2000
"""Number of latest requests that percentiles cover."""
_MAX_MODELS = 12


@contextmanager
def live_view(config: LoadtestConfig, progress: RunProgress, console: Console) -> Iterator["View"]:
    """Show a run's progress until the block ends."""
    view, before_s = View(config, progress), sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        with _table(view, console) if console.is_terminal else lines_every(_LINE_EVERY_S, view.line, console):
            yield view
    finally:
        sys.setswitchinterval(before_s)


def _table(view: "View", console: Console) -> Live:
    return Live(console=console, get_renderable=view.render, refresh_per_second=_REFRESH_PER_S, transient=True)


class View:
    """State of a run so far."""

    def __init__(self, config: LoadtestConfig, progress: RunProgress) -> None:
        self._config = config
        self._progress = progress
        self._start_s = time.perf_counter()

    def line(self) -> str:
        """One line for logs."""
        progress, elapsed_s = self._progress, time.perf_counter() - self._start_s
        left_s = max(0.0, self._config.duration_s - elapsed_s)
        num_ended, num_ok = len(progress.records), sum(record.is_ok for record in progress.records)
        return (
            f"{elapsed_s:.0f} s, {left_s:.0f} s left: {progress.num_sent} sent, {num_ok} ok, "
            f"{num_ended - num_ok} errors, {progress.num_sent - num_ended} open, {num_ended / elapsed_s:.1f} req/s; "
            f"p50/p99 TTFT {_pair(progress.records, 'ttft')}, ITL {_pair(progress.records, 'itl')}"
        )

    def render(self) -> RenderableType:
        elapsed_s = time.perf_counter() - self._start_s
        done = max(elapsed_s / self._config.duration_s, self._progress.num_sent / self._config.num_requests)
        return Group(Text(self.line()), ProgressBar(total=1.0, completed=min(1.0, done)), self._models())

    def _models(self) -> Table:
        table = Table("model", "ok", "errors", "TTFT p50/p99", "ITL p50/p99", box=None, padding=(0, 2, 0, 0))
        by_model: dict[str, list[RequestRecord]] = {}
        for record in list(self._progress.records):
            by_model.setdefault(record.model, []).append(record)
        for model, records in sorted(by_model.items(), key=lambda item: -len(item[1]))[:_MAX_MODELS]:
            num_ok = sum(record.is_ok for record in records)
            table.add_row(model, str(num_ok), str(len(records) - num_ok), _pair(records, "ttft"), _pair(records, "itl"))
        return table


def _pair(records: Sequence[RequestRecord], metric: Metric) -> str:
    latest = [record for record in records[-_MAX_RECORDS:] if record.is_ok]
    values = values_of(latest, metric)
    if not values:
        return "-"
    return f"{percentile(values, 50) * 1000:.0f}/{percentile(values, 99) * 1000:.0f} ms"
