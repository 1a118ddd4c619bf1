import pytest

from quality.metrics import answers
from quality.metrics.item import Item, LeftOut, ToolUse
from quality.scorers import AnswerFormat


def item(answer: str, expected: str, **fields: object) -> Item:
    return Item(id="1", question="?", expected=expected, answer=answer, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "expected", "share"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2.0, "a": 1}', 1),
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 1 / 2),
        ('{"a": 1}', '{"a": 1, "b": {"c": 2, "d": 3}}', 1 / 3),
        ('{"a": 1, "more": 2}', '{"a": 1}', 1 / 2),
        ('{"a": true}', '{"a": 1}', 0),
        ("no JSON", '{"a": 1}', 0),
        ('{"a": NaN}', '{"a": 1}', 0),
        ("[]", "[]", 1),
        ("[" * 100_000, '{"a": 1}', 0),
    ],
)
def test_json_fields_are_compared_by_path(answer: str, expected: str, share: float) -> None:
    assert answers.json_fields().of(item(answer[:50_000], expected)) == pytest.approx(share)


def test_an_expected_answer_without_json_is_left_out() -> None:
    assert answers.json_fields().of(item("{}", "plain")) == LeftOut("the expected answer is not JSON")


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ('{"drugs": ["b", "a"]}', '{"drugs": ["a", "b"]}', 1),
        ('{"drugs": ["a"]}', '{"drugs": ["a", "b"]}', 2 / 3),
        ('{"drugs": ["a", "a"]}', '{"drugs": ["a"]}', 2 / 3),
        ('{"doses": ["a"]}', '{"drugs": ["a"]}', 0),
        ('{"drugs": []}', '{"drugs": []}', 1),
    ],
)
def test_spans_count_by_key_and_without_order(answer: str, expected: str, f1: float) -> None:
    assert answers.span_f1().of(item(answer, expected)) == pytest.approx(f1)


def test_words_of_any_script_overlap() -> None:
    assert answers.token_f1().of(item("Der Bär schläft!", "der bär wacht")) == pytest.approx(2 / 3)
    assert answers.token_f1().of(item("नमस्ते दुनिया", "नमस्ते")) == pytest.approx(2 * 3 / (4 + 3), abs=0.4)


@pytest.mark.parametrize(
    ("answer", "in_scope", "score"),
    [("I cannot say.", False, 1), ("42", True, 1), ("I cannot say.", True, 0), ("42", False, 0)],
)
def test_both_errors_of_refusing_count(answer: str, in_scope: bool, score: float) -> None:
    assert answers.refusal("I cannot say.").of(item(answer, "x", in_scope=in_scope)) == score


def test_the_same_calls_in_another_order_are_right() -> None:
    sent, asked = ToolUse("send", {"to": "a", "n": 1.0}), ToolUse("ask", {})
    metric = answers.tool_calls()
    assert (
        metric.of(item("", "", expected_calls=(sent, asked), calls=(asked, ToolUse("send", {"n": 1, "to": "a"})))) == 1
    )
    assert metric.of(item("", "", expected_calls=(sent,), calls=(sent, sent))) == 0
    assert metric.of(item("", "", expected_calls=(sent,), calls=())) == 0


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("It costs $1,234.50.", "1234.5", 1),
        ("between 3 and 4", "4", 1),
        ("-3", "3", 0),
        ("1.005", "1.0", 1),
        ("1.2", "1.0", 0),
        ("none", "7", 0),
        ("2e3", "2000", 1),
    ],
)
def test_the_last_number_is_compared(answer: str, expected: str, score: float) -> None:
    assert answers.numeric(tolerance=0.01, relative=0).of(item(answer, expected)) == score


def test_an_expected_answer_without_number_is_left_out() -> None:
    assert isinstance(answers.numeric(0, 0).of(item("1", "one")), LeftOut)


def test_format_pattern_and_length() -> None:
    assert answers.valid_format(AnswerFormat({"type": "object"})).of(item("{}", "")) == 1
    assert answers.valid_format(AnswerFormat({"type": "object"})).of(item("[]", "")) == 0
    assert answers.regex(r"[A-Z]\d+").of(item(" B12 ", "")) == 1
    assert answers.regex(r"[A-Z]\d+").of(item("is B12", "")) == 0
    assert answers.length().of(item("three short words", "")) == 3
    assert answers.exact_match().of(item('{"a":1}', '{ "a": 1 }')) == 1
