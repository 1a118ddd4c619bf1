"""An author's regular expressions mean what they mean to Python, and none can stop the server."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.patterns import LinearPattern
from quality.scorers import AnswerFormat

BOMBS = [r"(\w+\s?)+", r"(a+)+b", r".*.*.*.*.*.*.*.*!", r"(a|a)*b", r"(a?){50}a{50}b"]


@pytest.mark.parametrize("pattern", BOMBS)
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    """With Python's `re` each of these would go on for years."""
    assert not LinearPattern(pattern).is_whole("a" * 1999 + "?")
    assert not AnswerFormat(None, pattern).accepts("a" * 1999 + "?")


@pytest.mark.parametrize("pattern", BOMBS)
def test_no_pattern_of_a_schema_takes_more_than_linear_time(pattern: str) -> None:
    text = "a" * 5000 + "?"
    schema = {"type": "object", "patternProperties": {f"^({pattern})$": {}}, "additionalProperties": False}
    assert not AnswerFormat({"type": "string", "pattern": f"^({pattern})$"}).accepts(f'"{text}"')
    assert not AnswerFormat(schema).accepts(f'{{"{text}": 1}}')


@pytest.mark.parametrize("pattern", [r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", r"[\w-]", r"[^\w]", r"[\s\S]", r"[\W_]"])
def test_a_class_holds_the_characters_that_python_says(pattern: str) -> None:
    plain, linear = re.compile(pattern), LinearPattern(pattern)
    chars = [chr(n) for n in range(0x3000) if unicodedata.category(chr(n)) != "Cn"]
    assert [char for char in chars if bool(plain.fullmatch(char)) != linear.is_whole(char)] == []


PATTERNS = st.from_regex(
    r"(a|b|\.|\\d|\\w|\\s|\[ab\]|\[\^a\]|\(a\|b\)|\(ab\)|ä|\\u00e4)([*+?]|\{2\}|\{,2\}|\{1,3\})?", fullmatch=True
)


@given(parts=st.lists(PATTERNS, max_size=5), text=st.text("ab1 ä.\n", max_size=12))
def test_a_pattern_matches_what_python_matches(parts: list[str], text: str) -> None:
    pattern = "".join(parts)
    assert LinearPattern(pattern).is_whole(text) == bool(re.fullmatch(pattern, text))
    assert LinearPattern(pattern).is_in(text) == bool(re.search(pattern, text))


@pytest.mark.parametrize("pattern", [r"(?=a)b", r"(?<!a)b", r"(a)\1", r"\w{1000}"])
def test_what_has_no_linear_time_is_no_pattern(pattern: str) -> None:
    with pytest.raises(re.error, match="linear time"):
        LinearPattern(pattern)
    with pytest.raises(re.error, match="linear time"):
        AnswerFormat({"properties": {"a": {"pattern": pattern}}})


def test_half_of_a_surrogate_pair_matches_nothing_special() -> None:
    assert LinearPattern(".+").is_whole("a\ud83c")
    assert not LinearPattern("a+").is_whole("a\ud83c")


def test_a_schemas_patterns_decide_as_before() -> None:
    schema = {
        "type": "object",
        "properties": {"code": {"type": "string", "pattern": "^[A-Z][0-9]+$"}},
        "patternProperties": {"^x-": {"type": "integer"}},
        "additionalProperties": {"type": "boolean"},
    }
    accepts = AnswerFormat(schema).accepts
    assert accepts('{"code": "I20", "x-a": 1, "more": true}')
    assert not accepts('{"code": "20"}')
    assert not accepts('{"x-a": "1"}')
    assert not accepts('{"more": 1}')
