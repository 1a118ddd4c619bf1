"""Sheets that came back from graders: read, checked, and made into figures of models."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from loadtest.evaluate import EvaluationError
from loadtest.evaluation.sheets import COLUMNS, ID_CHARS, SheetGrade, SheetGrades, SheetKey, item_of
from quality.agreement import Agreement, agreement_of_scores, krippendorffs_alpha
from quality.labels import allow_long_fields, as_written, label_score
from quality.metrics.answers import ByItem
from quality.metrics.figures import Figure, PairedDifference, difference_of, figure_of
from quality.metrics.item import Item, LeftOut

_REQUIRED = ("id", "score")
_DELIMITERS = ",;\t"
_MAX_SHOWN = 10

FindKey = Callable[[str], SheetKey | None]


class SheetError(EvaluationError):
    """A sheet that cannot be taken; the message names up to ten lines."""


@dataclass(frozen=True)
class GradedModel:
    """People's mean score of one model, and how it differs from the first model's."""

    model: str
    figure: Figure
    difference: PairedDifference | None


def read_sheet(path: Path, find: FindKey, grader: str) -> tuple[SheetKey, tuple[SheetGrade, ...]]:
    """The key of a sheet, and every grade in it; rows may be missing, without score, or in another order.

    Args:
        find: Looks up the key of a sheet by its name; None if it does not exist.
        grader: Who graded the rows that do not say it.

    Raises:
        SheetError: The file is not an exported sheet, or a row is wrong.
    """
    allow_long_fields()
    problems: list[str] = []
    key: SheetKey | None = None
    grades: dict[tuple[str, str], SheetGrade] = {}
    for place, row in _rows(path):
        own_id = row.get("id", "").strip()
        key = key or find(own_id[:ID_CHARS])
        try:
            if key is None or not own_id.startswith(f"{key.sheet}-"):
                raise SheetError(f"id {own_id!r} must be one of {_of(key)}")
            grade = _grade(row, own_id, key, grader)
            if grade is not None and (grade.row, grade.grader) in grades:
                raise SheetError(f"{grade.grader!r} has graded {grade.row!r} in an earlier line")
        except SheetError as error:
            problems.append(f"{place}: {error}")
        else:
            if grade is not None:
                grades[grade.row, grade.grader] = grade
    if problems:
        raise SheetError(f"{path}:\n" + "\n".join(_first(problems)))
    if key is None or not grades:
        raise SheetError(f"{path} has no score yet. Fill in column `score`: 1 to 5, or right and wrong.")
    return key, tuple(grades.values())


def joined(read: Sequence[tuple[SheetKey, tuple[SheetGrade, ...]]]) -> tuple[SheetKey, list[SheetGrade]]:
    """The grades of several files of one sheet.

    Raises:
        SheetError: They are of different sheets, or two files have grades of the same person.
    """
    key = read[0][0]
    grades: dict[tuple[str, str], SheetGrade] = {}
    for other, own in read:
        if other.sheet != key.sheet:
            raise SheetError("These are grades of different sheets. Import one after the other.")
        for grade in own:
            if (grade.row, grade.grader) in grades:
                raise SheetError(
                    f"Two files have a grade of {grade.row!r} by {grade.grader!r}. Fill in `grader`, or import one "
                    "after the other with `--grader`."
                )
            grades[grade.row, grade.grader] = grade
    return key, list(grades.values())


def key_of_sheet(path: Path, find: FindKey) -> SheetKey:
    """The key that the first row of a sheet leads to.

    Raises:
        SheetError: The sheet was not exported from this state folder.
    """
    for place, row in _rows(path):
        key = find(row["id"].strip()[:ID_CHARS])
        if key is None:
            raise SheetError(f"{path}: {place}: id {row['id']!r} must be one of {_of(None)}.")
        return key
    raise SheetError(f"{path} has no rows.")


def graded_models(key: SheetKey, grades: SheetGrades) -> list[GradedModel]:
    """Figures of each model by people's scores, paired by question with the first model's."""
    by_row = grades.by_row()
    scores = {(row.item, row.answer): fmean(by_row[row.id]) for row in key.rows if row.id in by_row}
    nobody = LeftOut("nobody has graded it")
    is_share = all(score in (0.0, 1.0) for score in scores.values())
    metric = ByItem(
        "human", lambda item: scores.get((item.id, item.answer), nobody), kind="share" if is_share else "mean"
    )
    items = {model: _items(key, model) for model in key.models}
    first = items[key.models[0]]
    return [
        GradedModel(model, figure_of(metric, own), None if own is first else difference_of(metric, first, own))
        for model, own in items.items()
    ]


def graders_agreement(grades: SheetGrades) -> Agreement | None:
    """Kappa of two graders, alpha of more; None for one."""
    by_row: dict[str, dict[str, float]] = defaultdict(dict)
    for grade in grades.grades:
        by_row[grade.row][grade.grader] = grade.score
    graders = sorted({grade.grader for grade in grades.grades})
    if len(graders) < 2:
        return None
    if len(graders) > 2:
        return krippendorffs_alpha([tuple(own.values()) for own in by_row.values()])
    one, other = graders
    return agreement_of_scores([(own[one], own[other]) for own in by_row.values() if len(own) == 2])


def _items(key: SheetKey, model: str) -> list[Item]:
    return sorted((item_of(row) for row in key.rows if model in row.models), key=lambda item: item.id)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The place of each row that is not empty, and its cells by the names of their columns."""
    text = _text(path)
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for number, cells in enumerate(reader, 1):
            start, line = line, reader.line_num + 1
            if names is None:
                names = [name.strip().lower() for name in cells]
                _check_columns(path, names)
            elif any(cell.strip() for cell in cells):
                place = f"line {start}" + (f" (row {number} of the table)" if number != start else "")
                yield place, dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise SheetError(f"{path}:\nline {line}: invalid CSV: {error}") from None
    if names is None:
        raise SheetError(f"{path} is empty.")


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise SheetError(f"{path} must be UTF-8 ({error}). Save it as `CSV UTF-8`.") from None


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in _REQUIRED if names.count(name) != 1]
    if missing:
        raise SheetError(
            f"{path}: the first line must name the columns {', '.join(_REQUIRED)} once each, as exported "
            f"({', '.join(COLUMNS)}); wrong or missing: {', '.join(missing)}."
        )


def _grade(row: dict[str, str], own_id: str, key: SheetKey, grader: str) -> SheetGrade | None:
    """The grade of a row; None: it has none yet."""
    by_id = {known.id: known for known in key.rows}
    if own_id not in by_id:
        raise SheetError(f"id {own_id!r} must be one of {_of(key)}")
    written = row.get("score", "").strip()
    if not written:
        return None
    score = label_score(written.removesuffix(".0"))
    if score is None:
        raise SheetError(f"`score` must be 1 to 5, right or wrong; got {written[:40]!r}")
    answers = {_plain(known.answer) for known in key.rows} - {_plain(by_id[own_id].answer)}
    if _plain(as_written(row.get("answer", ""))) in answers:
        raise SheetError(f"the answer beside id {own_id!r} is that of another id; sort whole rows only")
    by = as_written(row.get("grader", "").strip()) or grader
    return SheetGrade(row=own_id, grader=by, score=score, note=as_written(row.get("note", "").strip()))


def _of(key: SheetKey | None) -> str:
    if key is None:
        return "a sheet that this state folder exported (`--home`)"
    return f"sheet {key.sheet}: {key.rows[0].id} to {key.rows[-1].id}"


def _plain(text: str) -> str:
    return " ".join(text.split())


def _first(problems: Sequence[str]) -> list[str]:
    more = len(problems) - _MAX_SHOWN
    return [*problems[:_MAX_SHOWN], *([f"and {more} more lines"] if more > 0 else [])]
