"""What is learnt of a conversation: every assistant turn of weight 1 with its end, as a server would render it."""

import pytest

from config.dataset import DatasetRow, FunctionCall, Message, ToolCall, conversation
from config.domain import ChatConfig
from tests.tiny_llama import CHAT_TEMPLATE, RENDERED_AT, tiny_tokenizer
from train.data.encode import IGNORED, Encoded, encode, encode_prompt, encode_turns
from train.errors import DataError

CHAT = ChatConfig(system="Colour?", user="Item: {input}")
TOKENIZER = tiny_tokenizer()
DROPS_OLD_MARKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content | replace('!', '') }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS = CHAT_TEMPLATE.replace(
    "{{ m.content }}", "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}"
)


def row(text: str, answer: str) -> DatasetRow:
    return DatasetRow(messages=conversation(CHAT, text, answer), input=text, output=answer, in_scope=True)


def turns(*texts: str) -> tuple[Message, ...]:
    """User and assistant turns, alternating."""
    return tuple(
        Message(role=role, content=text) for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    )


def learnt(sequence: Encoded) -> list[str]:
    return [str(TOKENIZER.decode(sequence.input_ids[start:end])) for start, end in sequence.learnt]


def test_the_loss_covers_exactly_the_answer_and_its_end_token() -> None:
    encoded = encode(TOKENIZER, row("a rose", "red").messages, RENDERED_AT)
    assert TOKENIZER.decode([token for token in encoded.labels if token != IGNORED]) == "red<|im_end|>"
    assert len(encoded.labels) == len(encoded.input_ids)


def test_the_prompt_is_what_a_server_makes_of_the_conversation() -> None:
    messages = row("a rose", "red").messages
    assert encode(TOKENIZER, messages, RENDERED_AT).prompt_ids == encode_prompt(TOKENIZER, messages[:-1], RENDERED_AT)
    assert str(TOKENIZER.decode(list(encode_prompt(TOKENIZER, messages[:-1], RENDERED_AT)))).endswith("assistant\n")


def test_every_assistant_turn_is_learnt_in_one_sequence() -> None:
    (sequence,) = encode_turns(TOKENIZER, turns("a rose", "red", "grass", "green"), RENDERED_AT)
    assert learnt(sequence) == ["red<|im_end|>", "green<|im_end|>"]
    assert [sequence.labels[n] for n in range(len(sequence)) if sequence.labels[n] != IGNORED] == [
        token for start, end in sequence.learnt for token in sequence.input_ids[start:end]
    ]
    assert sequence.num_learnt == len("redgreen") + 2


def test_a_turn_of_weight_0_is_context_only() -> None:
    first, answer, *rest = turns("a rose", "red", "grass", "green")
    messages = (first, answer.model_copy(update={"weight": 0}), *rest)
    (sequence,) = encode_turns(TOKENIZER, messages, RENDERED_AT)
    assert learnt(sequence) == ["green<|im_end|>"]


def test_turns_after_the_last_learnt_one_are_left_out() -> None:
    *context, answer = turns("a rose", "red", "grass", "green")
    messages = (*context, answer.model_copy(update={"weight": 0}))
    (sequence,) = encode_turns(TOKENIZER, messages, RENDERED_AT)
    assert learnt(sequence) == ["red<|im_end|>"]


def test_a_conversation_without_a_learnt_turn_is_refused() -> None:
    with pytest.raises(DataError, match="every token is masked"):
        encode_turns(TOKENIZER, turns("a rose"), RENDERED_AT)


def test_turns_that_a_template_changes_later_become_own_sequences() -> None:
    tokenizer = tiny_tokenizer(DROPS_OLD_MARKS)
    first, last = encode_turns(tokenizer, turns("a rose", "red!", "grass", "green!"), RENDERED_AT)
    assert (learnt(first), learnt(last)) == (["red!<|im_end|>"], ["green!<|im_end|>"])
    assert "red<|im_end|>" in str(tokenizer.decode(list(last.prompt_ids)))


def test_a_tool_call_is_learnt_and_its_result_is_not() -> None:
    call = ToolCall(id="1", function=FunctionCall(name="look", arguments={"at": "rose"}))
    messages = (
        Message(role="user", content="a rose"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="it is red", tool_call_id="1"),
        Message(role="assistant", content="red"),
    )
    (sequence,) = encode_turns(tiny_tokenizer(CALLS), messages, RENDERED_AT)
    calling, answering = learnt(sequence)
    assert '{"name": "look", "arguments": {"at": "rose"}}' in calling
    assert answering == "red<|im_end|>"


def test_tool_definitions_reach_the_template() -> None:
    tokenizer = tiny_tokenizer("{{ tools | tojson if tools }}" + CHAT_TEMPLATE)
    tools = ({"type": "function", "function": {"name": "look"}},)
    prompt = encode(tokenizer, turns("a rose", "red"), RENDERED_AT, tools).prompt_ids
    assert prompt == encode_prompt(tokenizer, turns("a rose"), RENDERED_AT, tools)
    assert '"name": "look"' in str(tokenizer.decode(list(prompt)))


def test_a_template_without_an_end_token_gets_one() -> None:
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m.content }}|{% endfor %}")
    assert encode(tokenizer, row("a rose", "red").messages, RENDERED_AT).answer_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "differently when an answer follows",
        ),
        ("{{ raise_exception('No system role') }}", "rejects a conversation of the turns system, user: No system role"),
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", r"leaves out or changes 'Colour\?'"),
        ("{% for m in messages %}{{ m.content[:2] }}{% endfor %}", "leaves out or changes"),
    ],
)
def test_a_template_that_makes_the_mask_wrong_is_refused(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(tiny_tokenizer(template), row("a rose", "red").messages, RENDERED_AT)
