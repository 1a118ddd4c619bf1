import pytest

from config.data import CleaningConfig
from config.dataset import Message
from tests.train.data.examples_of import row, rows
from train.data.cleaning.contradictions import resolve_contradictions
from train.data.examples import Example
from train.errors import DataError

CLASH = [("Where?", "here"), ("Where?", "there"), (" Where? ", "here"), ("When?", "now")]


def resolved(how: str, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    config = CleaningConfig.model_validate({"contradictions": how})
    return [(e.question, e.answer) for e in resolve_contradictions(rows(pairs), config).examples]


def test_contradicting_rows_are_dropped_altogether() -> None:
    assert resolved("drop", CLASH) == [("When?", "now")]


def test_the_majority_keeps_the_most_frequent_answer() -> None:
    assert resolved("majority", CLASH) == [("Where?", "here"), (" Where? ", "here"), ("When?", "now")]


def test_without_a_majority_all_are_dropped() -> None:
    assert resolved("majority", CLASH[:2] + CLASH[3:]) == [("When?", "now")]


def test_kept_contradictions_are_listed_with_their_rows() -> None:
    step = resolve_contradictions(rows(CLASH), CleaningConfig(contradictions="keep")).step
    assert [(f.origin and f.origin.line, f.other and f.other.line) for f in step.findings] == [(1, 2), (2, 1), (3, 2)]
    assert "'here', 'there'" in step.findings[0].reason


def test_an_error_lists_file_and_line() -> None:
    with pytest.raises(DataError, match=r"3 rows have a question.*\n  rows.jsonl line 1: .*rows.jsonl line 2"):
        resolved("error", CLASH)


@pytest.mark.parametrize("answers", [('{"a": 1, "b": 2}', '{"b":2,"a":1}'), ("tea", " tea ")])
def test_one_answer_in_two_spellings_is_none(answers: tuple[str, str]) -> None:
    pairs = [("Which?", answer) for answer in answers]
    assert resolved("error", pairs) == pairs


def test_case_tells_questions_apart() -> None:
    pairs = [("us", "pronoun"), ("US", "country")]
    assert resolved("error", pairs) == pairs


def turn(text: str) -> tuple[Message, ...]:
    return (Message(role="assistant", content=text),)


def test_a_pair_in_both_orders_contradicts_itself() -> None:
    one = row("Best?", type="preference", completion=(), chosen=turn("a"), rejected=turn("b"))
    two = row("Best?", line=2, type="preference", completion=(), chosen=turn("b"), rejected=turn("a"))
    other = row("Best?", line=3, type="preference", completion=(), chosen=turn("a"), rejected=turn("c"))
    assert kept([one, two, other]) == [3]


def test_one_answer_with_both_labels_contradicts_itself() -> None:
    both = [row("Good?", "a", n, type="unpaired_preference", label=label) for n, label in enumerate((True, False), 1)]
    assert kept([*both, row("Good?", "b", 3, type="unpaired_preference", label=False)]) == [3]


def kept(examples: list[Example]) -> list[int]:
    return [e.origin.line for e in resolve_contradictions(examples, CleaningConfig()).examples if e.origin]
