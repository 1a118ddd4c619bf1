"""Lines of fine-tuning files: what is an example, in any pieces, and what the message says of one that is not."""

import json
from typing import Any

import pytest

from config.example_lines import ExampleError, ExampleFacts, ExampleLines

USER, ASSISTANT = {"role": "user", "content": "A tree?"}, {"role": "assistant", "content": "Oak."}
CHAT = {"messages": [USER, ASSISTANT]}
PREFERENCE = {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [ASSISTANT]}


def facts_of(content: bytes, piece: int = 1 << 20) -> ExampleFacts:
    lines = ExampleLines()
    for start in range(0, len(content), piece):
        lines.write(content[start : start + piece])
    return lines.end()


def file_of(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n"])
def test_examples_are_counted_in_any_pieces(piece: int, end: bytes) -> None:
    content = b"\xef\xbb\xbf" + b"\r\n".join([json.dumps(CHAT, ensure_ascii=False).encode()] * 12) + end
    facts = facts_of(content, piece)
    assert (facts.num_examples, facts.first_lines) == (12, {"chat": 1})


def test_a_line_separator_inside_a_string_ends_no_line() -> None:
    row = {"messages": [USER, ASSISTANT | {"content": "a\u2028b\u0085c"}]}
    assert facts_of(json.dumps(row, ensure_ascii=False).encode()).num_examples == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,answer\na,b\n", "Line 1 is not JSON .* begins with 'question,answer'. Send JSON Lines"),
        (file_of(CHAT, [CHAT]), r"Line 2 must be a JSON object, but begins with '\[\{"),
        (file_of(CHAT, CHAT)[:-5], "Line 2 is not JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "Line 1 is not JSON"),
        (b"{" * 1000, "Line 1 is not JSON"),
        (b"", "has no examples"),
        (b"\n \n", "has no examples"),
        (file_of({"messages": []}), "Line 1 must have a list of turns in `messages`"),
        (file_of(CHAT, {"messages": [USER, {"content": "Oak."}]}), "Line 2 must have a `role` in turn 2"),
        (file_of({"messages": [USER, {"role": "bot", "content": "Oak."}]}), "a `role` in turn 2 of `messages`"),
        (file_of({"messages": [USER, {"role": "assistant"}]}), "text as `content` in turn 2"),
        (file_of(PREFERENCE | {"input": "A tree?"}), "Line 1 has no `input` with `messages`"),
        (file_of(PREFERENCE | {"preferred_output": [USER]}), "no turn of the assistant in `preferred_output`"),
        (file_of({"preferred_output": [ASSISTANT]}), "Line 1 has no `input`"),
    ],
)
def test_a_line_that_is_no_example_is_named(content: bytes, message: str) -> None:
    with pytest.raises(ExampleError, match=message) as caught:
        facts_of(content)
    assert caught.value.code == "invalid_file_format"
    assert len(str(caught.value)) < 300


def test_a_line_without_an_end_is_not_held() -> None:
    with pytest.raises(ExampleError, match="Line 1 is longer than 8388608 bytes"):
        facts_of(b"x" * (10 << 20))


def test_a_call_of_a_tool_needs_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert facts_of(file_of({"messages": [USER, call]})).first_without_answer is None


@pytest.mark.parametrize(
    ("row", "method"),
    [
        (CHAT, "supervised"),
        ({"prompt": "A tree?", "completion": "Oak."}, "supervised"),
        ({"input": "A tree?", "output": "Oak."}, "supervised"),
        (PREFERENCE, "dpo"),
        ({"messages": [USER], "reference": "Oak."}, "reinforcement"),
    ],
)
def test_ten_examples_of_the_methods_format_are_enough(row: dict[str, Any], method: Any) -> None:
    facts_of(file_of(*[row] * 10)).check(method)


@pytest.mark.parametrize(
    ("row", "method", "message"),
    [
        ({"messages": [USER]}, "supervised", "Line 1 .* no turn of the assistant"),
        (PREFERENCE, "supervised", "Line 1 .* preference format, .* takes conversations"),
        (CHAT, "dpo", "Line 1 .* chat format, .* 'dpo' takes preferences"),
        (PREFERENCE, "reinforcement", "preference format"),
    ],
)
def test_a_file_must_fit_the_method(row: dict[str, Any], method: Any, message: str) -> None:
    with pytest.raises(ExampleError, match=message) as caught:
        facts_of(file_of(*[row] * 10)).check(method)
    assert caught.value.code == "invalid_training_file"


def test_nine_examples_are_too_few_to_train_on() -> None:
    facts = facts_of(file_of(*[CHAT] * 9))
    with pytest.raises(ExampleError, match=r"has 9 example\(s\), but must have at least 10") as caught:
        facts.check("supervised")
    assert caught.value.code == "invalid_n_examples"


def test_a_validation_file_may_be_short() -> None:
    facts_of(file_of(CHAT)).check("supervised", is_training=False)
