"""Sheets for people who grade answers without knowing whose they are.

A sheet has one row for each different answer to a question, in shuffled order. Which model gave it stands in the key, a
file of the state folder that graders do not get; grades are kept beside it.
"""

import csv
import hashlib
import io
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeVar

from pydantic import ValidationError

from adapters.store.durable import file_lock, replace_file
from config.private import make_private_folder
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.calibration import LabelledAnswer
from loadtest.evaluation.report import ReportRecord
from quality.labels import harmless
from quality.metrics.item import Item

COLUMNS = ("id", "context", "question", "expected", "answer", "score", "note", "grader")
ID_CHARS = 8
RecordT = TypeVar("RecordT", bound=ReportRecord)
_KEY, _GRADES = ".key.json", ".grades.json"


class SheetRow(ReportRecord):
    """One answer to grade, and the models that gave it."""

    id: str
    item: str
    context: str
    question: str
    expected: str
    answer: str
    models: tuple[str, ...]


class SheetKey(ReportRecord):
    """What graders do not see. `sheet` is a digest of the rest, so that the same sheet is exported twice alike."""

    schema_version: Literal[1] = 1
    sheet: str
    domain: str
    dataset: str
    models: tuple[str, ...]
    """As they served; the first is what others are compared with."""
    rows: tuple[SheetRow, ...]


class SheetGrade(ReportRecord):
    """One person's grade of one row, 0 to 1."""

    row: str
    grader: str
    score: float
    note: str = ""


class SheetGrades(ReportRecord):
    """All grades of a sheet."""

    schema_version: Literal[1] = 1
    grades: tuple[SheetGrade, ...] = ()

    def by_row(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for grade in self.grades:
            found[grade.row].append(grade.score)
        return found

    def updated(self, new: Sequence[SheetGrade]) -> "SheetGrades":
        """With new grades, which replace those of the same person and row."""
        merged = {(grade.row, grade.grader): grade for grade in (*self.grades, *new)}
        return SheetGrades(grades=tuple(merged.values()))


def make_sheet(domain: str, dataset: str, answers: Mapping[str, Sequence[Item]], seed: int) -> SheetKey:
    """Shuffle questions, and the answers within each; equal answers to a question are one row.

    Args:
        answers: Items of each model, all of the same questions in the same order.
    """
    rng = random.Random(f"{seed} {domain} {dataset}")
    questions = list(zip(*answers.values(), strict=True))
    rng.shuffle(questions)
    rows: list[tuple[Item, list[str]]] = []
    for items in questions:
        by_answer: dict[str, tuple[Item, list[str]]] = {}
        for model, item in zip(answers, items, strict=True):
            by_answer.setdefault(item.whole_answer, (item, []))[1].append(model)
        own = list(by_answer.values())
        rng.shuffle(own)
        rows += own
    told = repr([domain, dataset, seed, list(answers), [(item.id, item.whole_answer, models) for item, models in rows]])
    sheet = hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:ID_CHARS]
    return SheetKey(
        sheet=sheet,
        domain=domain,
        dataset=dataset,
        models=tuple(answers),
        rows=tuple(_row(f"{sheet}-{number:04}", item, models) for number, (item, models) in enumerate(rows, 1)),
    )


def sheet_csv(key: SheetKey) -> str:
    """The sheet that graders get, with empty scores."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in key.rows:
        cells = (row.context, row.question, row.expected, row.answer)
        writer.writerow([row.id, *(harmless(cell) for cell in cells), "", "", ""])
    return text.getvalue()


def save_key(folder: Path, key: SheetKey) -> None:
    """Keep the key of a sheet below a domain's evaluations."""
    make_private_folder(folder / "sheets")
    _write(folder / "sheets" / f"{key.sheet}{_KEY}", key)


def find_key(evaluations: Path, sheet: str) -> tuple[Path, SheetKey] | None:
    """The key of a sheet, and the folder of its domain's evaluations."""
    if len(sheet) != ID_CHARS or not sheet.isalnum():
        return None
    found = next(iter(evaluations.glob(f"*/sheets/{sheet}{_KEY}")), None)
    return (found.parent.parent, _read(found, SheetKey)) if found else None


def read_grades(folder: Path, sheet: str) -> SheetGrades:
    """The grades of a sheet so far."""
    path = folder / "sheets" / f"{sheet}{_GRADES}"
    return _read(path, SheetGrades) if path.is_file() else SheetGrades()


def add_grades(folder: Path, sheet: str, new: Sequence[SheetGrade]) -> SheetGrades:
    """Add to the grades of a sheet, all or none, beside other graders; returns what there is then."""
    with file_lock(folder / "sheets" / ".lock"):
        grades = read_grades(folder, sheet).updated(new)
        _write(folder / "sheets" / f"{sheet}{_GRADES}", grades)
    return grades


def labels_of_sheets(folder: Path) -> list[LabelledAnswer]:
    """Answers of a domain that people have graded in sheets, the sheets that were graded last at the end."""
    paths = sorted((folder / "sheets").glob(f"*{_GRADES}"), key=lambda path: path.stat().st_mtime_ns)
    labelled = []
    for path in paths:
        found = find_key(folder.parent, path.name.removesuffix(_GRADES))
        if found is None:
            continue
        key, scores = found[1], read_grades(folder, found[1].sheet).by_row()
        labelled += [
            LabelledAnswer(item_of(row), f"{key.sheet} {row.item}", fmean(scores[row.id]))
            for row in key.rows
            if row.id in scores
        ]
    return labelled


def item_of(row: SheetRow) -> Item:
    """The question and answer of a row."""
    return Item(
        id=row.item, question=row.question, expected=row.expected, answer=row.answer, context=row.context
    )  # fmt: skip


def _row(own_id: str, item: Item, models: Sequence[str]) -> SheetRow:
    texts = {
        "context": item.context,
        "question": item.question,
        "expected": item.whole_expected,
        "answer": item.whole_answer,
    }
    return SheetRow(id=own_id, item=item.id, models=tuple(models), **{n: _whole(text) for n, text in texts.items()})


def _read(path: Path, record: type[RecordT]) -> RecordT:
    try:
        return record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        raise EvaluationError(f"{path} is damaged: {fault['msg']}. Restore it, or delete it.") from error


def _write(path: Path, record: SheetKey | SheetGrades) -> None:
    replace_file(path, (record.model_dump_json(indent=1) + "\n").encode(), mode=0o600)


def _whole(text: str) -> str:
    """Half characters, which JSON may hold, can be written to no file."""
    return text.encode(errors="replace").decode()
