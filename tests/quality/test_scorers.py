import jsonschema
import pytest

from quality.scorers import AnswerFormat, is_exact_match

SCHEMA = {
    "type": "object",
    "properties": {"chapter": {"type": "string"}},
    "required": ["chapter"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": 1, "b": [true]}', '{"b":[true],"a":1.0}'),
        ("  plain words\n", "plain words"),
        ('"text"', ' "text" '),
        ("null", "null"),
    ],
)
def test_same_value_is_a_match(answer, expected):
    assert is_exact_match(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ("[1, 2]", "[2, 1]"),
        ("[1]", "[1, 1]"),
        ("0", "false"),
        ('{"a": 1} and more', '{"a": 1}'),
        ("Plain words", "plain words"),
    ],
)
def test_another_value_is_no_match(answer, expected):
    assert not is_exact_match(answer, expected)


def test_text_that_python_alone_takes_for_json_is_compared_as_text():
    assert is_exact_match("NaN", "NaN")
    assert not is_exact_match("NaN ?", "NaN")


def test_absurdly_nested_answers_are_text():
    assert not is_exact_match("[" * 100_000, "{}")
    assert not AnswerFormat({}).accepts("[" * 100_000)


def test_an_answer_that_the_schema_accepts_is_valid():
    assert AnswerFormat(SCHEMA).accepts('{"chapter": "Neoplasms"}')


@pytest.mark.parametrize(
    "answer", ["", "Neoplasms", '{"chapter": 2}', '{"chapter": "Neoplasms"} indeed', '{"chapter": "N', "NaN"]
)
def test_other_answers_are_invalid(answer):
    assert not AnswerFormat(SCHEMA).accepts(answer)


def test_a_broken_schema_is_the_callers_error_not_an_invalid_answer():
    with pytest.raises(jsonschema.SchemaError):
        AnswerFormat({"type": "chapter"})


def test_without_a_schema_every_answer_that_says_something_is_valid() -> None:
    assert AnswerFormat(None).accepts("Aye.")
    assert not AnswerFormat(None).accepts(" \n")


@pytest.mark.parametrize(
    ("answer", "is_valid"),
    [("I20.9", True), (" I20.9\n", True), ("I20.9 and more", False), ("", False), ("A" * 5000, False)],
)
def test_a_pattern_matches_the_whole_answer(answer: str, is_valid: bool) -> None:
    assert AnswerFormat(None, r"[A-Z]+[\d.]*").accepts(answer) is is_valid


def test_a_schema_and_a_pattern_count_together() -> None:
    both = AnswerFormat({"type": "number"}, r"\d\d")
    assert [both.accepts(answer) for answer in ("12", "123", "1x")] == [True, False, False]
