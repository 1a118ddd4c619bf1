"""`lorikeet data from-samples`: which answers become rows, where each came from, and what is kept out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from config.dataset import FINDINGS_FILE, read_dataset, read_split, version_folder
from config.forgetting import ForgettingConfig
from config.home import Home
from config.rows import PreferenceRow, read_rows
from lorikeet import app
from quality.samples.records import Turn
from tests.datasets_on_disk import ANSWER, write_dataset
from tests.train.data.feedback.said import Said, begin
from train.data.build import build_dataset
from train.data.feedback.build import FromSamples, build_from_samples, seconds_of
from train.errors import DataError
from train.evaluate.forgetting.measure import other_domains

SHORT_OF_BREATH = "Patient is short of breath after climbing stairs"
RASH = "An itching rash on both arms since Tuesday"
PREFERENCE = FromSamples(kind="preference")


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    said = begin(Home(tmp_path))
    yield said
    said.store.close()


def rows_of(said: Said, **settings: object) -> dict[str, str]:
    """Answers of the training rows, by question."""
    build_from_samples(said.home, "medical", FromSamples.model_validate(settings))
    return {row.input: row.output for row in read_split(said.home.datasets / "medical-feedback", "train")}


def reasons(said: Said) -> str:
    return (version_folder(said.home.datasets / "medical-feedback") / FINDINGS_FILE).read_text()


def test_a_correction_replaces_the_answer(said: Said) -> None:
    said.feedback(said.answer(RASH, "heart"), "u1", correction="skin")
    assert rows_of(said) == {RASH: "skin"}


@pytest.mark.parametrize("how", ["feedback", "label", "grade"])
def test_answers_found_good_are_kept_and_others_are_not(said: Said, how: str) -> None:
    for question, answer, score in ((RASH, "skin", 0.75), (SHORT_OF_BREATH, "skin", 0.5)):
        number = said.answer(question, answer)
        {
            "feedback": lambda n, s: said.feedback(n, "u1", score=s),
            "label": said.label,
            "grade": said.grade,
        }[how](number, score)
    assert rows_of(said) == {RASH: "skin"}


def test_people_decide_before_judges(said: Said) -> None:
    number = said.answer(RASH, "heart")
    said.grade(number, 1.0)
    said.label(number, 0.0)
    said.feedback(said.answer(SHORT_OF_BREATH, "lungs"), "u1", score=1.0)
    assert rows_of(said) == {SHORT_OF_BREATH: "lungs"}


def test_an_answer_that_was_cut_off_is_not_trained_on(said: Said) -> None:
    said.label(said.answer(RASH, "sk", finish_reason="length"), 1.0)
    said.label(said.answer(SHORT_OF_BREATH, "lungs"), 1.0)
    assert rows_of(said) == {SHORT_OF_BREATH: "lungs"}


def test_every_row_says_where_it_came_from(said: Said) -> None:
    number = said.answer(RASH, "heart")
    said.feedback(number, "4f2a", correction="skin")
    built = build_from_samples(said.home, "medical", FromSamples())
    (row,) = read_split(said.home.datasets / "medical-feedback", "train")
    assert row.origin is not None
    assert (row.origin.file, row.origin.line) == ("medical@3 correction by 4f2a sample", number)
    assert json.loads(built.train_file.read_text())["origin"] == f"medical@3 correction by 4f2a sample line {number}"


def test_a_held_out_question_is_not_trained_on(said: Said) -> None:
    said.feedback(said.answer("term 1", "heart"), "u1", correction="skin")
    said.feedback(said.answer(RASH, "heart"), "u1", correction="skin")
    assert rows_of(said) == {RASH: "skin"}
    assert "a held-out row" in reasons(said)


def test_the_held_out_rows_are_those_of_the_domain(said: Said) -> None:
    said.feedback(said.answer(RASH, "heart"), "u1", correction="skin")
    rows_of(said)
    folders = [said.home.datasets / name for name in ("medical", "medical-feedback")]
    assert read_split(folders[0], "test") == read_split(folders[1], "test")


def test_a_user_has_one_vote_on_a_question(said: Said) -> None:
    for who, answer in [("u1", "heart")] * 9 + [("u2", "skin"), ("u3", "skin")]:
        said.feedback(said.answer(RASH, "lungs"), who, correction=answer)
    assert rows_of(said) == {RASH: "skin"}


def test_a_tie_between_corrections_drops_the_question(said: Said) -> None:
    for who, answer in (("u1", "heart"), ("u2", "skin")):
        said.feedback(said.answer(RASH, "lungs"), who, correction=answer)
    said.label(said.answer(SHORT_OF_BREATH, "lungs"), 1.0)
    assert rows_of(said) == {SHORT_OF_BREATH: "lungs"}
    assert "2 rows ask this" in reasons(said)


def test_a_correction_against_the_judge_is_a_tie(said: Said) -> None:
    number = said.answer(RASH, "skin")
    said.grade(number, 1.0)
    said.feedback(number, "u1", score=0.0, correction="heart")
    said.label(said.answer(SHORT_OF_BREATH, "lungs"), 1.0)
    assert rows_of(said) == {SHORT_OF_BREATH: "lungs"}


def test_the_same_samples_give_the_same_version(said: Said) -> None:
    said.feedback(said.answer(RASH, "heart"), "u1", correction="skin")
    versions = {build_from_samples(said.home, "medical", FromSamples()).manifest.version for _ in range(2)}
    assert len(versions) == 1
    said.feedback(said.answer(SHORT_OF_BREATH, "heart"), "u1", correction="lungs")
    assert build_from_samples(said.home, "medical", FromSamples()).manifest.version not in versions


def test_only_what_was_said_since_then_counts(said: Said) -> None:
    said.feedback(said.answer(RASH, "heart"), "u1", correction="skin")
    since_s = said.now_s + 0.5
    said.feedback(said.answer(SHORT_OF_BREATH, "heart"), "u1", correction="lungs")
    build_from_samples(said.home, "medical", FromSamples(), since_s)
    (row,) = read_split(said.home.datasets / "medical-feedback", "train")
    assert row.input == SHORT_OF_BREATH


def pairs(said: Said) -> set[tuple[str, str]]:
    """Better and worse answers of all splits."""
    build_from_samples(said.home, "medical", PREFERENCE)
    folder = said.home.datasets / "medical-feedback"
    rows = [row for split in ("train", "validation", "test") for row in read_rows(folder, split)]
    return {(row.chosen[-1].content, row.rejected[-1].content) for row in rows if isinstance(row, PreferenceRow)}


def test_preferences_come_of_corrections_choices_and_grades(said: Said) -> None:
    said.feedback(said.answer("Question of a correction", "a0"), "u1", correction="a1")
    first, second = said.answer("Question of a choice", "b0"), said.answer("Question of a choice", "b1")
    said.feedback(second, "u2", over_id=first)
    for topic in ("knees", "elbows"):
        said.grade(said.answer(f"A judge graded this one about {topic}", f"{topic} 0"), 0.0)
        said.grade(said.answer(f"A judge graded this one about {topic}", f"{topic} 1"), 1.0)
    expected = {("a1", "a0"), ("b1", "b0"), ("knees 1", "knees 0"), ("elbows 1", "elbows 0")}
    assert pairs(said) == expected


def test_the_files_can_be_trained_on(said: Said, tmp_path: Path) -> None:
    for number in range(6):
        said.feedback(
            said.answer(f"Complaint of patient {number} about the left knee", "x"), f"u{number}", None, "knee"
        )
    built = build_from_samples(said.home, "medical", FromSamples(max_user_share=0.5))
    files = {"path": str(built.train_file), "held_out": [str(built.held_out_file)]}
    domain = {"name": "knees", "description": "d", "data": files, "chat": {"system": "Chapter, as JSON."}}
    from config.domain import DomainConfig

    manifest = build_dataset(DomainConfig.model_validate(domain), said.home)
    folder = said.home.datasets / "knees"
    assert manifest.num_train == 6
    assert {row.output for split in ("validation", "test") for row in read_split(folder, split)} == {ANSWER}


def test_another_system_prompt_than_the_domains_is_kept(said: Said) -> None:
    number = said.answer(RASH, "heart")
    said.feedback(number, "u1", correction="skin")
    with said.store._writing() as connection:
        turns = json.dumps([Turn("system", "Be brief."), Turn("user", RASH)])
        connection.execute("UPDATE samples SET messages = ?", (turns,))
    rows_of(said)
    (row,) = read_split(said.home.datasets / "medical-feedback", "train")
    assert row.messages[0].content == "Be brief."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("medical",), "Nothing that makes a row was said of answers of 'medical'; 0 samples"),
        (("legal",), "Data set 'legal' is missing"),
        (("medical", "--since", "soon"), "--since 'soon' must be a number with d, h or m"),
        (("medical", "--kind", "poem"), "`kind`"),
        (("medical", "--max-user-share", "0"), "`max_user_share`"),
    ],
)
def test_what_cannot_become_a_data_set_is_told_in_one_line(said: Said, words: tuple[str, ...], message: str) -> None:
    said.answer(RASH, "heart")
    result = CliRunner().invoke(app, ["data", "from-samples", *words, "--home", str(said.home.root)])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (said.home.datasets / "medical-feedback").exists()


def test_the_command_shows_the_steps_and_the_files(said: Said) -> None:
    said.feedback(said.answer(RASH, "heart"), "u1", correction="skin")
    result = CliRunner().invoke(app, ["data", "from-samples", "medical", "--home", str(said.home.root)])
    version = read_dataset(said.home.datasets / "medical-feedback").version
    shown = "".join(result.output.split())
    assert result.exit_code == 0, result.output
    assert f"feedback/medical/{version}.jsonl" in shown
    assert "shareofoneuser" in shown


def test_a_server_without_samples_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path)
    begin(home).store.close()
    home.quality.unlink()
    with pytest.raises(DataError, match="No server has stored samples"):
        build_from_samples(home, "medical", FromSamples())
    assert not home.quality.exists()


def test_a_domain_of_that_name_is_not_replaced(said: Said) -> None:
    write_dataset(said.home.datasets / "medical-feedback", 2)
    said.feedback(said.answer(RASH, "heart"), "u1", correction="skin")
    with pytest.raises(DataError, match="'medical-feedback' is the data set of a domain"):
        build_from_samples(said.home, "medical", FromSamples())


def test_a_data_set_of_samples_is_no_other_domain(said: Said) -> None:
    said.feedback(said.answer(RASH, "heart"), "u1", correction="skin")
    rows_of(said)
    others = other_domains(ForgettingConfig(), "legal", said.home.datasets)
    assert [dataset.domain for dataset, _ in others] == ["medical"]


def test_spans_are_days_hours_and_minutes() -> None:
    assert [seconds_of(span) for span in ("7d", "12h", "90m")] == [604_800.0, 43_200.0, 5_400.0]
