import pytest

from config.dataset import FunctionCall, Message, ToolCall
from config.domain import ChatConfig
from tests.train.data.examples_of import row
from train.data.checks.lengths import check_lengths
from train.data.checks.pii import clean_pii
from train.data.examples import Example
from train.data.report.examples import to_example
from train.data.rows import to_row

CHAT = ChatConfig(system="Answer.", user="Q: {input}")
USER = (Message(role="user", content="Where?"),)
CALL = ToolCall(function=FunctionCall(name="find", arguments={"what": "it"}))

EXAMPLES = [
    row("Where?", "There."),
    row("Where?", in_scope=False, is_synthetic=True),
    row(
        "",
        prompt=(Message(role="system", content="Be brief."), *USER, Message(role="assistant", content="Here."), *USER),
        tools=({"type": "function"},),
    ),
    row("Where?", completion=(Message(role="assistant", tool_calls=(CALL,)),)),
    Example("language_modeling", text="A whole text."),
    Example("prompt_only", prompt=USER),
    Example(
        "preference",
        prompt=USER,
        chosen=(Message(role="assistant", content="There."),),
        rejected=(Message(role="assistant", content="No."),),
    ),
    Example("unpaired_preference", prompt=USER, completion=(Message(role="assistant", content="No."),), label=False),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.type)
def test_a_row_is_read_as_the_example_that_it_was(example):
    assert to_example(to_row(CHAT, example), CHAT) == example


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.type)
def test_rows_of_all_types_can_be_checked(example):
    assert check_lengths([example]) == ()
    assert clean_pii([example], "redact").examples == (example,)
