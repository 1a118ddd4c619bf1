"""Start and end of each step since the demo's start; steps may overlap."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from config.progress import print_line, span
from config.terminal import print_heading
from demo.figures import StepFigures, StepKind


class Timeline:
    """The steps so far."""

    def __init__(self, console: Console, start_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        start_s: The demo's start, by the clock.
        """
        self.steps: list[StepFigures] = []
        self._console, self._clock, self._start_s = console, clock, start_s

    @property
    def now_s(self) -> float:
        return self._clock() - self._start_s

    @contextmanager
    def step(self, name: str, kind: StepKind) -> Iterator[None]:
        """A step that the user watches."""
        print_heading(self._console, name)
        start_s = self.now_s
        yield
        self.add(name, kind, start_s, self.now_s - start_s)
        print_line(self._console, f"{name}: {span(self.now_s - start_s)}; {span(self.now_s)} since the start")

    def add(self, name: str, kind: StepKind, start_s: float, seconds: float) -> None:
        step = StepFigures(name=name, seconds=round(seconds, 1), start_s=round(start_s, 1), kind=kind)
        self.steps.append(step)
