"""Sheets for people: blind, read back in any order, and made into figures."""

import csv
import io
from pathlib import Path

import pytest

from loadtest.evaluate import EvaluationError
from loadtest.evaluation.graded import SheetError, graded_models, graders_agreement, joined, read_sheet
from loadtest.evaluation.sheets import (
    SheetGrade,
    SheetGrades,
    SheetKey,
    add_grades,
    find_key,
    labels_of_sheets,
    make_sheet,
    read_grades,
    save_key,
    sheet_csv,
)
from quality.metrics.item import Item
from tests.loadtest.evaluation.judge_endpoint import item
from tests.narrowing import not_none

OLD, NEW = "medical@1", "medical@2"


def answers(num_items: int = 6) -> dict[str, list[Item]]:
    return {
        OLD: [item(n, f"old {n}") for n in range(num_items)],
        NEW: [item(n, f"new {n}" if n else "old 0") for n in range(num_items)],
    }


@pytest.fixture
def key() -> SheetKey:
    return make_sheet("medical", "abc", answers(), seed=13)


def table(key: SheetKey) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sheet_csv(key))))


def graded(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """5 for what the new version said alone, else 2."""
    return [row | {"score": "5" if "new" in row["answer"] else "2"} for row in rows]


def write(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: Path, key: SheetKey, grader: str = "ann") -> tuple[SheetGrade, ...]:
    return read_sheet(path, lambda name: key if name == key.sheet else None, grader)[1]


def test_a_sheet_names_no_model(key: SheetKey) -> None:
    assert "medical" not in sheet_csv(key)
    assert len(table(key)) == 11  # six questions, one of which both answer alike
    assert {row.models for row in key.rows} == {(OLD,), (NEW,), (OLD, NEW)}


def test_the_models_change_places(key: SheetKey) -> None:
    places = [row.models for row in key.rows if len(row.models) == 1]
    firsts = {places[n] for n in range(0, len(places), 2)}
    assert firsts == {(OLD,), (NEW,)}


def test_the_same_seed_gives_the_same_sheet(key: SheetKey) -> None:
    assert make_sheet("medical", "abc", answers(), seed=13) == key
    assert make_sheet("medical", "abc", answers(), seed=14).sheet != key.sheet


@pytest.mark.parametrize("answer", ["=1+1", "+1", "-1", "@x", "\t=1", "＝1", "'=1"])
def test_no_answer_acts_as_a_formula(tmp_path: Path, answer: str) -> None:
    key = make_sheet("medical", "abc", {OLD: [item(1, answer), item(2, "plain")]}, seed=13)
    rows = {row["id"]: row["answer"] for row in table(key)}
    assert all(not text.startswith(tuple("=+-@\t＝")) for text in rows.values())
    assert len(read(write(tmp_path / "a.csv", graded(table(key))), key)) == 2


def test_a_partial_reordered_sheet_with_more_columns_is_read(tmp_path: Path, key: SheetKey) -> None:
    rows = [{"mine": "x", **row} for row in reversed(graded(table(key)))][:7]
    rows[3]["score"] = ""
    grades = read(write(tmp_path / "a.csv", rows), key)
    assert {grade.row for grade in grades} == {row["id"] for row in rows if row["score"]}
    assert {grade.grader for grade in grades} == {"ann"}


@pytest.mark.parametrize(("score", "value"), [("4", 0.75), ("4.0", 0.75), (" Right ", 1.0), ("wrong", 0.0)])
def test_a_score_is_read_as_people_write_it(tmp_path: Path, key: SheetKey, score: str, value: float) -> None:
    row = table(key)[0] | {"score": score, "note": "'=why", "grader": "Bo"}
    (grade,) = read(write(tmp_path / "a.csv", [row], ";"), key)
    assert grade == SheetGrade(row=row["id"], grader="Bo", score=value, note="=why")


def test_wrong_rows_are_named_by_line_and_nothing_is_taken(tmp_path: Path, key: SheetKey) -> None:
    rows = graded(table(key))
    rows[0]["answer"] = "two\nlines"
    rows[1]["score"] = "6"
    rows[2]["id"] = "ffffffff-0001"
    rows[4]["id"] = rows[3]["id"]
    rows[5]["score"] = "maybe"
    with pytest.raises(SheetError) as raised:
        read(write(tmp_path / "a.csv", rows), key)
    lines = str(raised.value).splitlines()[1:]
    places = ["line 4 (row 3", "line 5 (row 4", "line 7 (row 6", "line 8 (row 7"]
    assert [line.partition(" of")[0] for line in lines] == places
    assert "1 to 5, right or wrong; got '6'" in lines[0]
    assert f"'ffffffff-0001' must be one of sheet {key.sheet}" in lines[1]
    assert "is that of another id" in lines[2]


def test_a_column_sorted_alone_is_noticed(tmp_path: Path, key: SheetKey) -> None:
    rows = graded(table(key))
    answers = sorted(row["answer"] for row in rows)
    shifted = [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)]
    with pytest.raises(SheetError, match="sort whole rows only"):
        read(write(tmp_path / "a.csv", shifted), key)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"id,answer\n1,x\n", "wrong or missing: score"),
        (b"id,score,score\n1,2,3\n", "wrong or missing: score"),
        (b"id,score\n\xff,2\n", "must be UTF-8"),
        (b"id,score\nffffffff-0001,2\n", "line 2: id 'ffffffff-0001' must be one of a sheet that this state folder"),
        (b'id,score\n"x,2\n', "line 2: invalid CSV"),
    ],
)
def test_a_file_that_is_no_sheet_says_why(tmp_path: Path, key: SheetKey, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(SheetError, match=message):
        read(path, key)


def test_a_sheet_without_scores_is_no_grades(tmp_path: Path, key: SheetKey) -> None:
    with pytest.raises(SheetError, match="has no score yet"):
        read(write(tmp_path / "a.csv", table(key)), key)


def test_two_files_of_one_name_are_two_people_or_none(tmp_path: Path, key: SheetKey) -> None:
    grades = read(write(tmp_path / "a.csv", graded(table(key))), key)
    with pytest.raises(SheetError, match=r"Two files have a grade of .* by 'ann'"):
        joined([(key, grades), (key, grades)])
    others = tuple(grade.model_copy(update={"grader": "bo"}) for grade in grades)
    assert joined([(key, grades), (key, others)]) == (key, [*grades, *others])
    with pytest.raises(SheetError, match="different sheets"):
        joined([(key, grades), (key.model_copy(update={"sheet": "ffffffff"}), others)])


def test_people_s_figures_are_paired_by_question(tmp_path: Path, key: SheetKey) -> None:
    grades = SheetGrades(grades=read(write(tmp_path / "a.csv", graded(table(key))), key))
    old, new = graded_models(key, grades)
    assert (old.model, old.figure.value, old.figure.n, old.difference) == (OLD, 0.25, 6, None)
    assert (new.figure.value, new.figure.n) == ((5 * 1.0 + 0.25) / 6, 6)
    assert new.difference is not None
    assert new.difference.value == pytest.approx(5 * 0.75 / 6)


def test_two_graders_agree_by_kappa(key: SheetKey) -> None:
    rows = [row.id for row in key.rows][:4]
    ours = [SheetGrade(row=row, grader="ann", score=score) for row, score in zip(rows, (1, 1, 0, 0), strict=True)]
    theirs = [SheetGrade(row=row, grader="bo", score=score) for row, score in zip(rows, (1, 1, 0, 1), strict=True)]
    found = not_none(graders_agreement(SheetGrades(grades=(*ours, *theirs))))
    assert found.n == 4
    assert not_none(found.kappa) == pytest.approx(0.5)
    assert graders_agreement(SheetGrades(grades=tuple(ours))) is None


def test_a_second_import_replaces_a_persons_grade(tmp_path: Path, key: SheetKey) -> None:
    save_key(tmp_path / "medical", key)
    place = tmp_path / "medical"
    first = SheetGrade(row=key.rows[0].id, grader="ann", score=0.0)
    add_grades(place, key.sheet, [first])
    again = [first.model_copy(update={"score": 1.0}), first.model_copy(update={"grader": "bo"})]
    assert add_grades(place, key.sheet, again) == read_grades(place, key.sheet)
    assert find_key(tmp_path, key.sheet) == (place, key)
    assert find_key(tmp_path, "../../xy") is None
    (label,) = labels_of_sheets(place)
    assert (label.score, label.item.answer) == (0.5, key.rows[0].answer)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (place / "sheets").glob("*.json"))


@pytest.mark.parametrize("name", ["key", "grades"])
def test_a_damaged_file_is_named(tmp_path: Path, key: SheetKey, name: str) -> None:
    save_key(tmp_path / "medical", key)
    add_grades(tmp_path / "medical", key.sheet, [SheetGrade(row=key.rows[0].id, grader="ann", score=0.0)])
    (tmp_path / "medical" / "sheets" / f"{key.sheet}.{name}.json").write_text("{")
    with pytest.raises(EvaluationError, match=rf"{key.sheet}\.{name}\.json is damaged"):
        labels_of_sheets(tmp_path / "medical")
