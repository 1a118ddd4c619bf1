"""Which requests are conversations of text, and which answers a generation belongs to."""

from typing import Any

import pytest

from quality.samples.records import Turn
from serve.engine.conversation import text_turns
from serve.engine.observed import _response_id
from serve.engine.protocol import Endpoint

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
HI = (Turn("user", "Hi"),)


@pytest.mark.parametrize(
    ("endpoint", "body", "turns"),
    [
        ("chat/completions", {"messages": [USER]}, HI),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, HI),
        ("responses", {"input": "Hi"}, HI),
        ("responses", {"input": [USER], "instructions": "Be brief."}, (Turn("system", "Be brief."), *HI)),
        ("responses", {"input": "Hi", "instructions": "Be brief."}, (Turn("system", "Be brief."), *HI)),
    ],
)
def test_a_conversation_of_text_has_its_turns(endpoint: Endpoint, body: dict[str, Any], turns: object) -> None:
    assert text_turns(endpoint, body) == turns


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("completions", {"prompt": "Hi"}),
        ("chat/completions", {"messages": [USER], "tools": [{"type": "function"}]}),
        ("chat/completions", {"messages": [USER, {"role": "tool", "content": "1"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("chat/completions", {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [1]}]}),
        ("chat/completions", {"messages": [USER, 7]}),
        ("chat/completions", {"messages": 7}),
        ("chat/completions", {}),
        ("responses", {"instructions": "Be brief."}),
        ("responses", {"input": [{"type": "reasoning"}]}),
    ],
)
def test_anything_else_has_none(endpoint: Endpoint, body: dict[str, Any]) -> None:
    assert text_turns(endpoint, body) == ()


@pytest.mark.parametrize(
    ("engine_id", "response_id"),
    [("chatcmpl-a-0", "chatcmpl-a-0"), ("cmpl-a-0", "cmpl-a"), ("resp_a_0", "resp_a"), (None, None)],
)
def test_a_generation_belongs_to_the_answer_with_this_id(engine_id: str | None, response_id: str | None) -> None:
    assert _response_id(engine_id) == response_id
