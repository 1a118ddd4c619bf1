"""Consoles: whole lines where there is no terminal."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from config.terminal import labelled, log_handler, make_console, print_error, print_heading
from tests.tracked_files import ROOT

LONG = " ".join(["word"] * 100)


def test_a_long_line_stays_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    make_console().print(LONG)
    assert capsys.readouterr().out == f"{LONG}\n"


def test_a_table_shows_all_it_has_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a", "b")
    table.add_row(LONG, LONG)
    make_console().print(table)
    assert f"{LONG} │ {LONG}" in capsys.readouterr().out


def test_a_json_event_can_be_parsed_from_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    event = {"event": "step", "text": LONG, "markup": "[red]"}
    handler = log_handler(make_console())
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, json.dumps(event), None, None))
    assert json.loads(capsys.readouterr().out) == event


def test_a_heading_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_heading(make_console(), "train medical")
    assert capsys.readouterr().out == "== train medical\n"


def test_an_error_quotes_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(f"No adapter '[bold]'. {LONG}")
    assert capsys.readouterr().err == f"error: No adapter '[bold]'. {LONG}\n"


def test_an_error_escapes_what_commands_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("No column '\x1b[31mred\x9b\u202e' in\na\u00a0file")
    assert capsys.readouterr().err == "error: No column '\\x1b[31mred\\x9b\\u202e' in\na\u00a0file\n"


@pytest.mark.slow
def test_columns_of_the_shell_do_not_break_lines_of_a_log() -> None:
    code = f"from config.terminal import make_console; make_console().print({LONG!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                          env={"COLUMNS": "40", "PATH": ""})  # fmt: skip
    assert done.stdout == f"{LONG}\n"


@pytest.mark.slow
def test_a_log_that_nobody_reads_does_not_end_the_command() -> None:
    code = """
import logging
from config.terminal import log_handler, make_console
logging.basicConfig(level=logging.INFO, handlers=[log_handler(make_console())])
logging.info("first")
logging.info("second")
"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_log_that_cannot_be_written_does_not_end_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    file.close()
    log_handler(Console(file=file)).handle(logging.LogRecord("x", logging.INFO, "", 0, "first", None, None))
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["best[/final]", "rows[v2].csv", "[/4.0]", ":bug: [red]", "a\\[b]"])
def test_what_a_user_named_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    console = make_console()
    console.print(text)
    console.print(table)
    console.print(labelled("warning:", "yellow", text))
    print_heading(console, text)
    print_error(text)
    printed = capsys.readouterr()
    assert [printed.out.count(text), printed.err] == [7, f"error: {text}\n"]
