"""Run lorikeet commands as a user would, and end them together with the demo."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from config.progress import print_line
from loadtest.bench.children import child

_LOOK_EVERY_S = 0.5


class StepFailedError(Exception):
    """A command of the demo failed after printing its error, or produced no result."""


def run_lorikeet(*words: str, home: Path, console: Console, check: Callable[[], None] = lambda: None) -> None:
    """Run `lorikeet WORDS` and show its output.

    Args:
        check: Called periodically; an exception ends the command.

    Raises:
        StepFailedError: The command failed.
    """
    print_line(console, f"$ lorikeet {shlex.join(words)}")
    command = [sys.executable, "-P", "-m", "lorikeet", *words, "--home", str(home)]
    with child(command) as process:
        while process.poll() is None:
            check()
            try:
                process.wait(_LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                continue
    if process.returncode != 0:
        raise StepFailedError(f"`lorikeet {shlex.join(words)}` failed; see its message above.")
