"""Which held-out rows a server can ask again."""

import logging

import pytest

from config.dataset import DatasetRow, FunctionCall, Message, ToolCall
from config.domain import DomainConfig
from train.evaluate.held_out import _questions

CONFIG = DomainConfig.model_validate(
    {"name": "a", "description": "A.", "base": "tiny", "data": {"path": "a.jsonl"}, "chat": {"system": "Colour?"}}
)
ASK, ANSWER = Message(role="user", content="a rose"), Message(role="assistant", content="red")
CALL = ToolCall(function=FunctionCall(name="look", arguments={}))


def row(*prompt: Message, answer: Message = ANSWER, **fields: object) -> DatasetRow:
    messages = (*prompt, answer)
    return DatasetRow.model_validate({"messages": messages, "input": "a rose", "output": answer.content, **fields})


def test_texts_of_several_turns_are_asked_with_the_domains_prompt() -> None:
    system = Message(role="system", content="Colour?")
    (question,) = _questions([row(system, ASK, ANSWER, ASK)], CONFIG.chat.system)
    assert [turn.role for turn in question.messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    "left_out",
    [
        row(ASK, tools=({"type": "function"},)),
        row(Message(role="system", content="Of which kind?"), ASK),
        row(Message(role="developer", content="Colour?"), ASK),
        row(ASK, Message(role="assistant", tool_calls=(CALL,)), Message(role="tool", content="red")),
        row(ASK, answer=Message(role="assistant", tool_calls=(CALL,))),
    ],
)
def test_rows_that_are_more_than_texts_are_left_out(left_out: DatasetRow, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(_questions([left_out, row(ASK)], CONFIG.chat.system)) == 1
    assert "1 of 2 held-out questions have tools or a system prompt of their own" in caplog.text
