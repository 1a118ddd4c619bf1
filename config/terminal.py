"""Consoles for terminals and log files: only terminals get colours, bars and wrapped lines.

Markup is off, because names, paths and user texts may contain brackets and colons. Coloured output uses `Text`.
"""

import logging
import re
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

_NO_MARKUP: dict[str, Any] = {"markup": False, "emoji": False}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NEVER_BROKEN = 1_000_000
"""Columns used without a terminal, so that lines in files, pipes and CI logs are not wrapped."""


def make_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr; a plain `Console()` wraps at 80 columns without a terminal."""
    console = Console(stderr=stderr, **_NO_MARKUP)
    return console if console.is_terminal else Console(stderr=stderr, width=_NEVER_BROKEN, **_NO_MARKUP)


def labelled(label: str, style: str, text: object) -> Text:
    """A label in colour, and a text after it, in which nothing commands the terminal."""
    return Text.assemble((label, style), f" {shown_text(str(text))}")


def printable(text: str) -> Text:
    """A text that cannot command the terminal: its control characters are replaced."""
    return Text("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))


def shown_text(text: str) -> str:
    """Line breaks and tabs stay; other control characters, changes of direction and half characters are escaped."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def print_heading(console: Console, text: str) -> None:
    """A rule across a terminal; elsewhere a line."""
    if console.is_terminal:
        console.rule(Text(text, style="bold"), align="left")
    else:
        console.print(f"== {text}", highlight=False)


def print_error(error: object) -> None:
    """One line on stderr."""
    make_console(stderr=True).print(labelled("error:", "red", error), soft_wrap=True)


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
