"""Progress of long-running work with the time left: a bar in a terminal, a line every ten seconds in a log."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

LINE_EVERY_S = 10.0
_REFRESH_PER_S = 4
_BAR_WIDTH = 30


class Progress:
    """State of a task's progress, updated by the worker; other threads may read it."""

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "",
        *,
        hint: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        total: Number of units; None if unknown.
        unit: Name of the units, e.g. `steps`.
        hint: Note for work that cannot be counted, e.g. `usually a minute`.
        """
        self.title, self.total, self.unit, self.hint = title, total, unit, hint
        self.done = self._done_before = 0
        self.details: dict[str, str] = {}
        self._is_over = False
        self._clock, self._start_s = clock, clock()
        self._spinner = Spinner("dots")

    def begin(self, total: int, done: int = 0) -> None:
        """Start counting; `done` units existed before and are ignored in the speed."""
        self.total, self.done, self._done_before = total, done, done
        self._start_s = self._clock()

    def advance(self, count: int = 1) -> None:
        self.done += count

    def end(self) -> None:
        """Mark the work as finished, even if some units were skipped."""
        self._is_over = True

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start_s

    @property
    def left_s(self) -> float | None:
        """Time left at the mean speed so far; None if the speed is unknown."""
        num_here = self.done - self._done_before
        if self.total is None or num_here == 0:
            return None
        return self.elapsed_s * max(self.total - self.done, 0) / num_here

    def line(self) -> str:
        """`train medical: 12 of 60 steps, loss 0.532, 41 s, 2 min 44 s left`."""
        return f"{self.title}: {self._state()}"

    def render(self) -> RenderableType:
        """The same for a terminal."""
        table = Table.grid(padding=(0, 1))
        bar = ProgressBar(self.total, self.done, _BAR_WIDTH) if self.total else self._spinner
        table.add_row(Text(self.title, style="bold"), bar, Text(self._state()))
        return table

    def _state(self) -> str:
        return ", ".join(filter(None, (self._count(), *self._words())))

    def _count(self) -> str:
        return "" if self.total is None else f"{self.done} of {self.total} {self.unit}".rstrip()

    def _words(self) -> Iterator[str]:
        yield from (f"{name} {value}" for name, value in list(self.details.items()))
        yield span(self.elapsed_s)
        if self._is_over or self.done == self.total:
            return
        if self.left_s is not None:
            yield f"{span(self.left_s)} left"
        yield self.hint


@contextmanager
def shown(progress: Progress, console: Console, every_s: float = LINE_EVERY_S) -> Iterator[Progress]:
    """Show the progress until the block ends, and a final line unless it raised an error."""
    with _bar(progress, console) if console.is_terminal else lines_every(every_s, progress.line, console):
        yield progress
        progress.end()
    if not console.is_terminal:
        print_line(console, progress.line())


def lines_every(every_s: float, line: Callable[[], str], console: Console) -> AbstractContextManager[None]:
    """Print a status line periodically until the block ends; an empty line is not printed."""

    def print_text() -> None:
        if text := line():
            print_line(console, text)

    return called_every(every_s, print_text)


@contextmanager
def called_every(every_s: float, work: Callable[[], None]) -> Iterator[None]:
    """Call `work` periodically in a thread until the block ends."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every_s):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def span(seconds: float) -> str:
    """`41 s`, `2 min 44 s` or `1 h 5 min`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def _bar(progress: Progress, console: Console) -> AbstractContextManager[object]:
    return Live(console=console, get_renderable=progress.render, refresh_per_second=_REFRESH_PER_S)
