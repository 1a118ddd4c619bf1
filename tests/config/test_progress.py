"""Progress of long work: what is said, and when."""

import io
import threading

import pytest
from rich.console import Console

from config.progress import Progress, lines_every, shown, span
from tests.clock import FakeClock


class Lines(io.StringIO):
    """A log file that tells when it has so many lines."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.is_full = threading.Event()
        self._count = count

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.getvalue().count("\n") >= self._count:
            self.is_full.set()
        return written


class Growing(str):
    """Adds a detail while it is written, as the thread that works may."""

    progress: Progress

    def __format__(self, spec: str) -> str:
        self.progress.details[f"more {len(self.progress.details)}"] = "1"
        return str(self)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def log_console(file: io.StringIO) -> Console:
    return Console(file=file, width=10_000)


def test_counted_work_says_what_is_left(clock: FakeClock) -> None:
    progress = Progress("train medical", unit="steps", clock=clock)
    progress.begin(60)
    clock.now_s += 40
    progress.advance(12)
    progress.details["loss"] = "0.532"
    assert progress.line() == "train medical: 12 of 60 steps, loss 0.532, 40 s, 2 min 40 s left"


def test_resumed_work_is_judged_by_its_own_speed(clock: FakeClock) -> None:
    progress = Progress("train medical", unit="steps", clock=clock)
    progress.begin(60, done=30)
    assert progress.left_s is None
    clock.now_s += 20
    progress.advance(10)
    assert progress.left_s == pytest.approx(40)


def test_work_that_cannot_be_counted_says_what_it_usually_takes(clock: FakeClock) -> None:
    progress = Progress("prepare the base", hint="usually a minute", clock=clock)
    clock.now_s += 20
    assert progress.line() == "prepare the base: 20 s, usually a minute"


def test_finished_work_has_nothing_left(clock: FakeClock) -> None:
    progress = Progress("medical", 4, "answers", clock=clock)
    clock.now_s += 8
    progress.advance(4)
    assert progress.line() == "medical: 4 of 4 answers, 8 s"


def test_work_that_ended_early_has_nothing_left(clock: FakeClock) -> None:
    progress = Progress("medical", 80, "answers at most", hint="an hour", clock=clock)
    clock.now_s += 8
    progress.advance(47)
    progress.end()
    assert progress.line() == "medical: 47 of 80 answers at most, 8 s"


def test_a_log_file_gets_lines_while_the_work_lasts() -> None:
    file = Lines(3)
    with shown(Progress("medical", 4, "answers"), log_console(file), every_s=0.001) as progress:
        assert file.is_full.wait(30)
        progress.advance(4)
    lines = file.getvalue().splitlines()
    assert lines[0] == "medical: 0 of 4 answers, 0 s"
    assert lines[-1].startswith("medical: 4 of 4 answers")


def test_work_that_failed_has_no_last_line() -> None:
    file = io.StringIO()
    with pytest.raises(ZeroDivisionError), shown(Progress("medical"), log_console(file), every_s=60):
        raise ZeroDivisionError
    assert file.getvalue() == ""


def test_a_line_with_nothing_to_say_is_left_out() -> None:
    texts, asked = iter(("", "now", "")), threading.Event()
    file = io.StringIO()

    def line() -> str:
        text = next(texts, None)
        if text is None:
            asked.set()
        return text or ""

    with lines_every(0.001, line, log_console(file)):
        assert asked.wait(30)
    assert file.getvalue() == "now\n"


def test_a_terminal_gets_a_bar_that_stays() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with shown(Progress("medical", 4, "answers"), console) as progress:
        progress.advance(4)
    assert "4 of 4 answers" in file.getvalue()
    assert "━" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (164, "2 min 44 s"), (3900, "1 h 5 min")]
)
def test_a_span_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_detail_may_come_while_the_line_is_written(clock: FakeClock) -> None:
    progress = Progress("train medical", clock=clock)
    loss = progress.details["loss"] = Growing("0.5")
    loss.progress = progress
    assert progress.line() == "train medical: loss 0.5, 0 s"
    assert "more 1" in progress.details
