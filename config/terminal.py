"""Consoles for terminals and for log files: only a terminal gets colours, bars and lines broken at its width."""

import logging
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

_NEVER_BROKEN = 1_000_000
"""Columns. A file, a pipe or a CI log has no width: a line broken there can be neither searched nor parsed."""


def make_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr; `Console()` itself breaks lines at 80 columns where there is no terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_NEVER_BROKEN)


def print_heading(console: Console, text: str) -> None:
    """A rule across a terminal; elsewhere a line."""
    if console.is_terminal:
        console.rule(f"[bold]{escape(text)}", align="left")
    else:
        console.print(f"== {text}", markup=False, highlight=False)


def print_error(error: object) -> None:
    """One line on stderr; what a message quotes is never read as markup."""
    make_console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def log_handler(console: Console) -> logging.Handler:
    """Log records on a console: rich's columns in a terminal, else whole lines."""
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, show_level=False)
    handler = _LineHandler(console)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


class _LineHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.print(self.format(record), **_AS_IT_IS)
        except SystemExit:
            pass  # rich's answer to a broken pipe; the console is silent from then on
        except Exception:
            self.handleError(record)


_AS_IT_IS: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
