"""`lorikeet quality`: what a person types and reads while labelling, and labels that go through a spreadsheet."""

import csv
import io
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from config.terminal import printable
from lorikeet import app
from quality.labels import label_score
from quality.samples.records import Grade, Label, Sample
from quality.samples.store import QualityStore
from serve.monitor.labels.csv import COLUMNS, LabelsError, read_labels, write_labels
from serve.monitor.labels.labelling import Labelling
from tests.samples import SAMPLE

Run = Callable[..., Result]

WIDE = {"COLUMNS": "200", "NO_COLOR": "1", "USER": "ada"}


@pytest.fixture
def run(home: Path) -> Run:
    def invoke(*arguments: str, typed: str | None = None) -> Result:
        return CliRunner().invoke(app, ["quality", *arguments, "--home", str(home)], env=WIDE, input=typed)

    return invoke


def sample(number: int = 0, **changes: Any) -> Sample:
    fields: dict[str, Any] = {"at_s": SAMPLE.at_s + number, "prompt": f"Question {number}?"}
    return replace(SAMPLE, **(fields | changes))


def scores(quality: QualityStore) -> dict[int, float]:
    return {label.sample_id: label.score for label in quality.labels()}


def test_each_answer_is_shown_and_takes_one_label(run: Run, quality: QualityStore) -> None:
    first, second, third = quality.add_samples([sample(number) for number in range(3)])
    result = run("label", "medical", typed="5\nwrong\n2 the wrong chapter\n")
    assert result.exit_code == 0
    assert scores(quality) == {third: 1.0, second: 0.0, first: 0.25}  # the newest first
    assert quality.labels(sample_id=first)[0].note == "the wrong chapter"
    assert {label.who for label in quality.labels()} == {"ada"}
    assert all(text in result.stdout for text in ("Question 0?", "I20", "3 of 3, 2 labelled", "medical@1"))
    assert "3 labelled by ada, 0 left" in result.stdout


def test_without_a_terminal_lines_are_of_readable_width(run: Run, quality: QualityStore) -> None:
    quality.add_samples([sample()])
    assert max(len(line) for line in run("label", typed="q\n").stdout.splitlines()) <= 120


def test_a_skipped_answer_comes_again_in_the_next_session(run: Run, quality: QualityStore) -> None:
    quality.add_samples([sample(0), sample(1)])
    assert "1 labelled by ada" in run("label", typed="s\nr\n").stdout
    assert "1 of 1" in run("label", typed="q\n").stdout


def test_undo_takes_the_last_label_back_and_shows_its_answer_again(run: Run, quality: QualityStore) -> None:
    first, second = quality.add_samples([sample(0), sample(1)])
    result = run("label", typed="5\ns\n")
    assert scores(quality) == {second: 1.0}
    quality.remove_label(second, "ada")
    result = run("label", typed="u\n1\nu\n4\nq\n")
    assert "Nothing to undo" in result.stdout
    assert result.stdout.count("Question 1?") == 2
    assert scores(quality) == {second: 0.75}
    assert first not in scores(quality)


def test_what_is_no_label_is_asked_again(run: Run, quality: QualityStore) -> None:
    quality.add_sample(sample())
    result = run("label", typed="7\nyes\n\n3\n")
    assert "'yes' must be one of: 1 to 5" in result.stdout
    assert list(scores(quality).values()) == [0.5]


def test_the_end_of_the_input_is_a_quit(run: Run, quality: QualityStore) -> None:
    quality.add_samples([sample(0), sample(1)])
    result = run("label", typed="5\n")
    assert result.exit_code == 0
    assert "1 labelled by ada, 1 left" in result.stdout


def test_an_interrupt_loses_no_label_that_was_given(quality: QualityStore) -> None:
    samples = [replace(sample(), id=quality.add_sample(sample(number))) for number in range(2)]
    lines = iter(["4"])

    def ask(_: str) -> str:
        line = next(lines, None)
        if line is None:
            raise KeyboardInterrupt
        return line

    session = Labelling(quality, samples, "ada", Console(file=io.StringIO()), ask, clock=lambda: 1.0)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert quality.labels() == (Label(samples[0].id, "ada", 1.0, 0.75),)
    assert session.progress == (1, 1)


def test_a_note_with_half_a_character_is_kept_all_the_same(quality: QualityStore) -> None:
    one = replace(sample(), id=quality.add_sample(sample()))
    Labelling(quality, [one], "ada", Console(file=io.StringIO()), lambda _: "5 so \udcc3!").run()
    assert [label.note for label in quality.labels()] == ["so ?!"]


def test_what_a_judge_has_graded_is_labelled_first_and_its_grade_is_not_shown(run: Run, quality: QualityStore) -> None:
    first, _, _ = quality.add_samples([sample(number) for number in range(3)])
    quality.add_grade(Grade(first, "judge", 1.0, 0.25, "Wrong chapter."))
    result = run("label", typed="5\nq\n")
    assert list(scores(quality)) == [first]
    assert "Wrong chapter." not in result.stdout


def test_a_sample_that_goes_meanwhile_is_passed_over(quality: QualityStore) -> None:
    gone = replace(sample(), id=quality.add_sample(sample()))
    quality.prune(before_s=gone.at_s + 1, most_samples=10)
    output = io.StringIO()
    session = Labelling(quality, [gone], "ada", Console(file=output), lambda _: "5")
    session.run()
    assert "deleted by retention" in output.getvalue()
    assert session.progress == (0, 0)


def test_a_text_cannot_command_the_terminal_or_pass_for_our_markup() -> None:
    text = printable("a\x1b[2Jb\r\x07[red]c[/]\n\td\u202e")
    assert text.plain == "a\ufffd[2Jb\ufffd\ufffd[red]c[/]\n\td\ufffd"


@pytest.mark.parametrize(
    ("samples", "arguments", "message"),
    [
        ([], [], "No samples exist yet"),
        ([sample(prompt=None, answer=None, privacy="features")], [], "none with text (privacy features)"),
        ([sample()], ["legal"], "No samples of 'legal' exist, only of medical."),
    ],
)
def test_without_anything_to_label_it_says_why_and_what_to_do(
    run: Run, quality: QualityStore, samples: list[Sample], arguments: list[str], message: str
) -> None:
    quality.add_samples(samples)
    result = run("label", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_where_privacy_keeps_no_text_it_says_which_setting_does(run: Run, quality: QualityStore) -> None:
    quality.add_sample(sample(prompt=None, answer=None, privacy="features"))
    assert "set `quality: {privacy: redacted}` (or `full`) in serve.yaml" in run("label").stderr


def test_when_all_are_labelled_it_says_so(run: Run, quality: QualityStore) -> None:
    quality.add_label(Label(quality.add_sample(sample()), "bob", 1.0, 1.0))
    assert "All 1 samples with text are labelled" in run("label").stderr


@pytest.mark.parametrize("command", [["label"], ["export-labels", "x.csv"]])
def test_without_a_store_it_says_who_makes_it_and_makes_none(run: Run, home: Path, command: list[str]) -> None:
    result = run(*command)
    assert result.exit_code == 1
    assert "`lorikeet serve` creates it" in result.stderr
    assert not home.exists()


def test_labels_go_out_and_come_back_the_same(run: Run, quality: QualityStore, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    first, second = quality.add_samples([sample(0, prompt='A "quoted",\nlong question'), sample(1)])
    labels = [Label(first, "ada", 1.0, 0.25, "=SUM(1)"), Label(second, "bob", 1.0, 1.0)]
    quality.add_labels(labels)
    assert "Wrote 2 labels" in run("export-labels", str(file)).stdout
    for label in labels:
        quality.remove_label(label.sample_id, label.who)
    assert "Imported 2 labels" in run("import-labels", str(file)).stdout
    assert {replace(label, at_s=1.0) for label in quality.labels()} == set(labels)


def test_what_waits_for_a_label_goes_out_with_an_empty_one(run: Run, quality: QualityStore, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    quality.add_sample(sample())
    assert "0 labels and 1 samples without one" in run("export-labels", str(file), "--unlabelled").stdout
    (row,) = csv.DictReader(io.StringIO(file.read_text()))
    assert (tuple(row), row["label"], row["answer"]) == (COLUMNS, "", "I20")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "the column `label` is empty in every row" in run("import-labels", str(file)).stderr


def test_an_export_without_labels_says_how_to_make_some(run: Run, quality: QualityStore, tmp_path: Path) -> None:
    quality.add_sample(sample())
    assert "lorikeet quality label" in run("export-labels", str(tmp_path / "labels.csv")).stderr
    assert not (tmp_path / "labels.csv").exists()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'=", "''@"])
def test_no_cell_begins_like_a_formula(start: str) -> None:
    text = f"{start}HYPERLINK(1)"
    one = replace(sample(answer=text, prompt=text, adapter=text), id=7)
    (row,) = csv.DictReader(io.StringIO(write_labels([(one, Label(7, text, 1.0, 0.5, text))]), newline=""))
    assert {row[name] for name in ("adapter", "prompt", "answer", "who", "note")} == {f"'{text}"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("99,5,,", "line 3: sample '99' does not exist"),
        ("one,5,,", "sample 'one' does not exist"),
        ("-1,5,,", "sample '-1' does not exist"),
        ("2,6,,", "`label` must be 1 to 5, right or wrong; got '6'"),
        ("2,0.5,,", "got '0.5'"),
        ("2,good,,", "got 'good'"),
        ("1,4,,", "'ada' already labelled sample 1 in an earlier line"),
        ("2,4,legal,", "sample 2 has adapter 'medical' in this store, but 'legal' in the file"),
        ("2,4,medical,7", "sample 2 has version '1' in this store, but '7' in the file"),
    ],
)
def test_one_wrong_line_and_nothing_is_taken(
    run: Run, quality: QualityStore, tmp_path: Path, rows: str, message: str
) -> None:
    quality.add_samples([sample(0), sample(1)])
    file = tmp_path / "labels.csv"
    file.write_text(f"sample_id,label,adapter,version\n1,5,,\n{rows}\n")
    result = run("import-labels", str(file))
    assert result.exit_code == 1
    assert message in result.stderr
    assert quality.labels() == ()


def test_a_file_with_many_wrong_lines_tells_of_ten(run: Run, quality: QualityStore, tmp_path: Path) -> None:
    quality.add_sample(sample())
    file = tmp_path / "labels.csv"
    file.write_text("sample_id,label\n" + "1,bad\n" * 12)
    result = run("import-labels", str(file))
    assert result.stderr.count("got 'bad'") == 10
    assert "and 2 more lines" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id;grade\n1;5\n", "must name the columns sample_id, label"),
        (b"", "must name the columns"),
        (b"sample_id,label\n1,\xff\n", "is not UTF-8 text"),
        (b'sample_id,label\n1,"5\n', "invalid CSV"),
    ],
)
def test_a_file_that_is_no_table_of_labels_is_refused(
    run: Run, quality: QualityStore, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    result = run("import-labels", str(file))
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_spreadsheets_byte_order_mark_does_not_matter(run: Run, quality: QualityStore, tmp_path: Path) -> None:
    sample_id = quality.add_sample(sample())
    file = tmp_path / "labels.csv"
    file.write_text(f"sample_id,label,who,note\r\n{sample_id}, Right ,eve,Well said\r\n", encoding="utf-8-sig")
    assert run("import-labels", str(file)).exit_code == 0
    (label,) = quality.labels()
    assert (label.who, label.score, label.note) == ("eve", 1.0, "Well said")


@given(st.text(max_size=3))
def test_a_label_is_a_grade_or_a_word_and_nothing_else(text: str) -> None:
    assert (label_score(text) is not None) == (text.strip().lower() in ("1", "2", "3", "4", "5"))


AWKWARD = st.text("'=+-@\t\r\n\", a＝", max_size=9)


@given(st.text(st.characters(codec="utf-8"), max_size=40), AWKWARD, AWKWARD.map("{}a".format).map(str.strip))
def test_any_text_survives_the_table(answer: str, note: str, who: str) -> None:
    one = replace(sample(answer=answer, adapter=who), id=7)
    table = write_labels([(one, Label(7, who, 1.0, 0.5, note))])
    (label,) = read_labels(table, {7: one}.get, who="bob", at_s=2.0)
    assert (label.who, label.score, label.note) == (who, 0.5, note)


def test_a_nul_in_a_file_is_an_error_not_a_crash() -> None:
    with pytest.raises(LabelsError):
        read_labels("sample_id,label\n1,\0\n", lambda _: None, who="ada", at_s=1.0)
