"""A sheet graded in a terminal: one answer at a time, each grade kept as soon as it is given."""

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from config.terminal import printable
from loadtest.evaluation.sheets import SheetGrade, SheetKey, SheetRow, add_grades, read_grades
from quality.labels import label_score

HELP = "1 to 5, (r)ight, (w)rong, (s)kip, (q)uit; text after a score is a note"

_MAX_COLUMNS = 120
_WORDS = {"r": "right", "w": "wrong"}


def grade_rows(
    folder: Path, key: SheetKey, grader: str, console: Console, ask: Callable[[str], str]
) -> tuple[int, int]:
    """Ask for a grade of each row that this person has not graded; numbers of grades given, and of rows left.

    Args:
        folder: Of the domain's evaluations.
        ask: Reads a line; raises EOFError at the end of the input.
    """
    done = {grade.row for grade in read_grades(folder, key.sheet).grades if grade.grader == grader}
    left = [row for row in key.rows if row.id not in done]
    count = 0
    for number, row in enumerate(left, 1):
        for panel in _panels(row, f"{number} of {len(left)}: "):
            console.print(panel, width=min(console.width, _MAX_COLUMNS))
        answer = _read(ask, console)
        if answer is None:
            break
        score, note = answer
        if score is not None:
            grade = SheetGrade(row=row.id, grader=grader, score=score, note=note)
            add_grades(folder, key.sheet, [grade])
            count += 1
    return count, len(left) - count


def _read(ask: Callable[[str], str], console: Console) -> tuple[float | None, str] | None:
    """Score and note, no score to skip; None to quit."""
    while True:
        try:
            word, _, note = ask(f"{HELP}: ").strip().partition(" ")
        except EOFError:
            return None
        except UnicodeDecodeError:  # half a character was typed
            continue
        word = word.lower()
        if word in ("q", "quit"):
            return None
        if word in ("s", "skip"):
            return None, ""
        score = label_score(_WORDS.get(word, word))
        if score is not None:
            return score, note.strip().encode(errors="replace").decode()
        console.print(f"{word!r} must be one of: {HELP}")


def _panels(row: SheetRow, place: str) -> Iterator[Panel]:
    texts = {"context": row.context, f"{place}question": row.question, "expected": row.expected, "answer": row.answer}
    for title, text in texts.items():
        if text or title == "answer":
            style = "green" if title == "answer" else "dim"
            yield Panel(printable(text), title=Text(title), title_align="left", border_style=style)
