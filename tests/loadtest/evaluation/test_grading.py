"""A sheet graded in a terminal."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from loadtest.evaluation.grading import grade_rows
from loadtest.evaluation.sheets import make_sheet, read_grades
from tests.loadtest.evaluation.judge_endpoint import item

KEY = make_sheet("medical", "abc", {"medical@1": [item(n, f"\x1b[2Janswer {n}") for n in range(3)]}, seed=13)


def scripted(*lines: str) -> Callable[[str], str]:
    left = iter(lines)

    def ask(question: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return ask


def grades(folder: Path) -> list[tuple[str, float, str]]:
    return [(grade.row, grade.score, grade.note) for grade in read_grades(folder, KEY.sheet).grades]


def graded(folder: Path, *lines: str, grader: str = "ann") -> tuple[int, int, str]:
    (folder / "sheets").mkdir(exist_ok=True)
    with (folder / "screen").open("w") as screen:
        count, left = grade_rows(folder, KEY, grader, Console(file=screen, width=80), scripted(*lines))
    return count, left, (folder / "screen").read_text()


def test_each_grade_is_kept_and_a_second_session_goes_on(tmp_path: Path) -> None:
    count, left, shown = graded(tmp_path, "9", "r well said", "s")
    first, second, third = (row.id for row in KEY.rows)
    assert (count, left, grades(tmp_path)) == (1, 2, [(first, 1.0, "well said")])
    assert "'9' must be one of" in shown
    assert "\x1b" not in shown
    assert graded(tmp_path, "2", "q")[0] == 1
    assert graded(tmp_path, "5", grader="bo")[0] == 1
    assert grades(tmp_path) == [(first, 1.0, "well said"), (second, 0.25, ""), (first, 1.0, "")]
    assert "1 of 1" in graded(tmp_path, "w")[2]  # only the third is left
    assert grades(tmp_path)[-1] == (third, 0.0, "")


def test_the_model_is_not_shown(tmp_path: Path) -> None:
    assert "medical@1" not in graded(tmp_path, "q")[2]
